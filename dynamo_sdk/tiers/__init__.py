"""What an engine's blocks go down to when the device needs its memory, and come up from.

::

    KVTiers ─┬─ Offloader (one per tier), UseCounter     down
             ├─ Onboarder                                up
             └─ Tier ── a KVStore of any kind            stores/
"""

from .kv_tiers import KVTiers
from .onboarding import LoadReport

__all__ = ["KVTiers", "LoadReport"]
