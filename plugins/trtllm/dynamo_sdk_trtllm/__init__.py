"""TensorRT-LLM as an engine of ``dynamo_sdk``. Experimental: written and tested against ``contract.json``,
never run on the real engine by us.

==========  ====================================================================================
module      what it is
==========  ====================================================================================
plugin      what is offered, for discovery; imports nothing heavy
config      what a deploy file may say, and how it becomes TensorRT-LLM's own arguments
translate   a request into TensorRT-LLM's words, its outputs and errors back into ours
handover    tickets between prefill and decode: issued, checked, never used twice
generation  one request inside TensorRT-LLM: read to its end, or left so that nothing stays behind
kv_events   one rank's events, numbered without a gap, and what they have built
polling     reading what TensorRT-LLM must be asked for
gauges      how busy the engine is
engine      the interfaces of an engine, on top of ``LLM``
contract    what of TensorRT-LLM the others rely on; ``python -m dynamo_sdk_trtllm.contract`` checks it
==========  ====================================================================================

TensorRT-LLM is imported when an engine starts, in the process that runs it, and nowhere else.
"""
