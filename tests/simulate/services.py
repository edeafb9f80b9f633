"""Graphs and policies that tests name by import string."""

from dynamo_sdk import Graph, depends, service
from dynamo_sdk.routing.policies import RoundRobinRouter
from dynamo_sdk.services import DecodeWorker, Frontend, PrefillWorker, Worker


@service
class Model(Worker): ...


@service
class Other(Worker): ...


@service
class Prefill(PrefillWorker): ...


@service
class Decode(DecodeWorker): ...


@service
class Api(Frontend):
    model = depends(Model)


@service
class TwoApi(Frontend):
    model = depends(Model)
    other = depends(Other)


@service
class SplitApi(Frontend):
    prefill = depends(Prefill)
    decode = depends(Decode)


@service
class PrefillOnlyApi(Frontend):
    prefill = depends(Prefill)


graph = Graph(Api)
two = Graph(TwoApi)
split = Graph(SplitApi, router="least-loaded")


def first(request, candidates, context):
    """A routing function."""
    return candidates[0]


class Mine(RoundRobinRouter):
    pass


nothing = 3
