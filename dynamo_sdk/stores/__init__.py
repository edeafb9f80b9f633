"""Cache tiers beyond the device: host memory, a local disk, a shared bucket, and other workers' tiers.

::

    KVTiers ─┬─ Offloader (one per tier), UseCounter     down
             ├─ Onboarder                                up
             └─ Tier ── a KVStore of any kind

    RamStore, DiskStore ── SlotStore ── kv/store_index.py   which slot holds what, what goes next
                               └── SlotMedium               bytes: one memory; a file, a table, checksums
    S3Store ── ObjectClient, PresenceCache                  one object per block, found by all its users
    PeerStore ── PeerExchange ──socket──> PeerServer ── the stores of another worker
"""

from .config import DiskStoreConfig, PeerStoreConfig, RamStoreConfig, S3StoreConfig
from .disk import DiskStore
from .peer import PeerStore
from .peer_server import PeerServer, PeerServerStatistics
from .ram import RamStore
from .s3 import S3Store
from .slot_store import SlotStore
from .tiers import KVTiers

__all__ = [
    "DiskStore",
    "DiskStoreConfig",
    "KVTiers",
    "PeerServer",
    "PeerServerStatistics",
    "PeerStore",
    "PeerStoreConfig",
    "RamStore",
    "RamStoreConfig",
    "S3Store",
    "S3StoreConfig",
    "SlotStore",
]
