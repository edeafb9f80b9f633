"""Graphs for the end-to-end tests; the engine is chosen on the command line."""

from __future__ import annotations

from dynamo_sdk import Graph, depends, service
from dynamo_sdk.services import DecodeWorker, Frontend, PrefillWorker, Worker


@service
class Prefill(PrefillWorker): ...


@service
class Decode(DecodeWorker): ...


@service
class Api(Frontend):
    prefill = depends(Prefill)
    decode = depends(Decode)


@service
class Whole(Worker): ...


@service
class WholeApi(Frontend):
    worker = depends(Whole)


graph = Graph(Api)
aggregated = Graph(WholeApi)
