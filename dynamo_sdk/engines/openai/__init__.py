"""An engine that somebody else runs: a server whose ``/v1/completions`` takes token ids and gives them back.

==========  ===================================================================================
module      what it is
==========  ===================================================================================
config      what a deploy file may say
protocol    requests and streamed answers as JSON, both ways; no I/O
engine      the interfaces of an engine, on top of an HTTP client
==========  ===================================================================================
"""
