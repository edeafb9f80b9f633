"""KV tiers below vLLM's device: a KV connector that vLLM loads, out of its tree.

::

    EngineCore, once                              each worker process of vLLM
    connector  KVTiersConnector                   connector  KVTiersConnector
       └─ planning  what to save, what to load        └─ worker  a thread with an event loop
            ├─ names    keys of a request's blocks         ├─ memory, device   vLLM's own KV pages
            ├─ held     what the tiers hold                ├─ dynamo_sdk.tiers.KVTiers
            └─ OnboardingPolicy                            │    └─ RamStore, DiskStore, PeerStore, ...
                                                           └─ PeerServer       others read the stores
                    ── Orders, with each step ──>
                    <── Report, after each step ──        (messages)

``sharing``: what the SDK's worker says about other workers. Only ``connector`` imports vLLM.
"""
