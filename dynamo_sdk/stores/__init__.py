"""Cache tiers that keep KV blocks beyond the device: host memory, a local disk, a bucket that workers share.

::

    KVTiers ─┬─ Offloader (one per tier), UseCounter     down
             ├─ Onboarder                                up
             └─ Tier ── a KVStore of any kind

    RamStore, DiskStore ── SlotStore ── kv/store_index.py   which slot holds what, what goes next
                               └── SlotMedium               bytes: one arena; a file, a table and checksums
    S3Store ── ObjectClient, PresenceCache                  one object per block, found by all its users
"""

from .config import DiskStoreConfig, RamStoreConfig, S3StoreConfig
from .disk import DiskStore
from .ram import RamStore
from .s3 import S3Store
from .slot_store import SlotStore
from .tiers import KVTiers

__all__ = [
    "DiskStore",
    "DiskStoreConfig",
    "KVTiers",
    "RamStore",
    "RamStoreConfig",
    "S3Store",
    "S3StoreConfig",
    "SlotStore",
]
