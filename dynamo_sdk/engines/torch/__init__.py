"""The built-in engine: ``transformers`` models on our own paged KV cache, on CPU and CUDA.

==============  ==================================================================================
module          what it is
==============  ==================================================================================
config          what a deploy file may say
loader          a folder -> a network, and facts about it
cache           the KV blocks: a tensor for attention, bytes for hand-over
attention       attention over blocks, in the place of the network's own
sampler         logits -> token, a pure function of (seed, position)
runner          one step on the device
mailbox         one request's tokens on their way to its consumer, and at hand for the sampler
admission       which requests can be run at all
reservations    who waits for blocks to be filled from elsewhere
feeds           KV events, numbered, for whoever listens
memory          how many blocks to set up
core            the loop that joins the scheduler (``dynamo_sdk.scheduling``) and the runner
engine          the interfaces of an engine, on top of the core
==============  ==================================================================================

The life of a request is three calls: ``Scheduler.add``, ``ModelRunner.execute`` in each of its steps,
``Mailbox.put`` for each of its tokens. A deploy file is checked without torch: ``config`` imports none of
it, and neither does this package itself.
"""
