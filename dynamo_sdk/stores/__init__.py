"""Cache tiers that keep KV blocks beyond the device: host memory and a local disk.

::

    RamStore, DiskStore ── SlotStore ── kv/store_index.py   which slot holds what, what goes next
                               └── SlotMedium               bytes: one arena; a file, a table and checksums
"""

from .config import DiskStoreConfig, RamStoreConfig
from .disk import DiskStore
from .ram import RamStore
from .slot_store import SlotStore

__all__ = ["DiskStore", "DiskStoreConfig", "RamStore", "RamStoreConfig", "SlotStore"]
