"""SGLang as an engine of ``dynamo_sdk``.

==========  ====================================================================================
module      what it is
==========  ====================================================================================
plugin      what is offered, for discovery; imports nothing heavy
config      what a deploy file may say, and how it becomes SGLang's own arguments
translate   a request into SGLang's words, its outputs and errors back into ours
handover    where the legs of a request meet
tiers       tiers of the deploy file in SGLang's words
engine      the interfaces of an engine, on top of a host process
gauges      how busy the engine is
steps       what SGLang says of each forward pass
hosted      a host process, seen from the worker
messages    what the two say to each other
host        the program of the host process, which imports SGLang
hicache     a KV store of ours below SGLang's host memory; SGLang imports it
==========  ====================================================================================

SGLang's ``Engine`` takes a process over: it handles the signals, keeps its configuration in globals, and
ends by killing every child that the process has. So it gets a process of its own.
"""
