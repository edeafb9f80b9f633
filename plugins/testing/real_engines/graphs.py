"""The graphs of ``test_graphs``."""

from dynamo_sdk import Graph, depends, service
from dynamo_sdk.services import DecodeWorker, Frontend, PrefillWorker, Worker


@service
class Whole(Worker): ...


@service
class Prefill(PrefillWorker): ...


@service
class Decode(DecodeWorker): ...


@service
class AggregatedApi(Frontend):
    whole = depends(Whole)


@service
class DisaggregatedApi(Frontend):
    prefill = depends(Prefill)
    decode = depends(Decode)


aggregated = Graph(AggregatedApi, router="kv")
disaggregated = Graph(DisaggregatedApi, router="kv")
