"""Two models on two engines behind one endpoint. The deploy file says which service runs which.

    dynamo-sdk run examples/05_two_models.py -f examples/05_two_models.yaml

    curl http://127.0.0.1:8000/v1/models

A request names its model; the frontend finds the workers that serve it.
"""

from dynamo_sdk import Graph, depends, service
from dynamo_sdk.services import Frontend, Worker


@service
class Expert(Worker): ...


@service
class Parrot(Worker): ...


@service
class Api(Frontend):
    expert = depends(Expert)
    parrot = depends(Parrot)


graph = Graph(Api)
