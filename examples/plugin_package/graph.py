"""A graph with our engine and our router: dynamo-sdk run graph.py -f deploy.yaml"""

from dynamo_sdk import Graph, depends, service
from dynamo_sdk.services import Frontend, Worker


@service
class Mirror(Worker): ...


@service
class Api(Frontend):
    mirror = depends(Mirror)


graph = Graph(Api, router="roomiest")
