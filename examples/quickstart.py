"""A real model, disaggregated: `dynamo-sdk run examples/quickstart.py`, then any OpenAI client."""

from dynamo_sdk import Graph, depends, service
from dynamo_sdk.services import DecodeWorker, Frontend, PrefillWorker


@service
class Prefill(PrefillWorker): ...


@service
class Decode(DecodeWorker): ...


@service
class Api(Frontend):
    prefill = depends(Prefill)
    decode = depends(Decode)


graph = Graph(Api, router="least-loaded")
