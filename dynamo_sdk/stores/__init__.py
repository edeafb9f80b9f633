"""Where KV blocks are kept beyond the device: host memory, a local disk, a shared bucket, other workers.

::

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

__all__ = [
    "DiskStore",
    "DiskStoreConfig",
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
