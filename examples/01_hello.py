"""The smallest graph: a frontend and one worker. The echo engine says the prompt back; it runs no model.

    dynamo-sdk run examples/01_hello.py --set services.Model.engine=echo

    curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
         -d '{"model": "demo", "messages": [{"role": "user", "content": "Hello!"}]}'

Without `--set` the built-in PyTorch engine runs a real model, the one that is shipped with us. See what would
be started, and where each setting comes from, with `dynamo-sdk plan examples/01_hello.py`.
"""

from dynamo_sdk import Graph, depends, service
from dynamo_sdk.services import Frontend, Worker


@service
class Model(Worker):
    """Runs one engine. How many replicas, on what: that is said in the deploy file, never here."""


@service
class Api(Frontend):
    """Speaks the OpenAI protocol, and asks the worker."""

    model = depends(Model)


graph = Graph(Api)
