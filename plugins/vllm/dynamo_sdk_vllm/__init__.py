"""vLLM as an engine of ``dynamo_sdk``.

==========  ====================================================================================
module      what it is
==========  ====================================================================================
plugin      what is offered, for discovery; imports nothing heavy
config      what a deploy file may say, and how it becomes vLLM's own arguments
translate   a request into vLLM's words, its outputs and errors back into ours
handover    tickets between prefill and decode: issued, checked, never used twice
engine      the interfaces of an engine, on top of ``AsyncLLM``
gauges      how busy the engine is
remote      a vLLM server that somebody else runs
==========  ====================================================================================

vLLM is imported when an engine starts, in the process that runs it, and nowhere else.
"""
