"""A router of your own in ten lines: long prompts get a worker for themselves, so that short ones never wait.

    python examples/04_your_own_router.py
    dynamo-sdk run examples/04_your_own_router.py --set services.Model.replicas=3

The hook below makes the router known to this graph. In a distribution of its own, with one entry point, the
same hook makes it known to every graph: see docs/plugins.md. `dynamo_sdk.testing.check_router` says whether a
router is sound.
"""

import asyncio
from collections.abc import Sequence

import httpx

from dynamo_sdk import Graph, depends, hookimpl, service
from dynamo_sdk.interfaces import Candidate, RoutingContext, RoutingRequest
from dynamo_sdk.plugins import RouterDescriptor
from dynamo_sdk.routing import router_from_function
from dynamo_sdk.services import Frontend, Worker

LONG_TOKENS = 100


@router_from_function
def by_length(request: RoutingRequest, candidates: Sequence[Candidate], context: RoutingContext) -> Candidate:
    """The last worker takes the long prompts; of the others, the least busy one takes the short ones."""
    *others, last = sorted(candidates, key=lambda candidate: candidate.worker_id)
    if request.num_tokens >= LONG_TOKENS or not others:
        return last
    return min(others, key=lambda candidate: candidate.num_active_requests)


@hookimpl
def dynamo_sdk_routers() -> list[RouterDescriptor]:
    return [RouterDescriptor(name="by-length", factory=f"{__name__}:by_length", summary="long prompts apart")]


@service
class Model(Worker): ...


@service
class Api(Frontend):
    model = depends(Model)


graph = Graph(Api, router="by-length")


async def main() -> None:
    deploy = {"services": {"Model": {"engine": "echo", "replicas": 3}}}
    async with graph.local(deploy) as app, httpx.AsyncClient(base_url=app.url or "") as client:
        for num_tokens in (5, 500, 7, 700, 900):
            body = {"model": "demo", "prompt": [65] * num_tokens, "max_tokens": 1}
            (await client.post("/v1/completions", json=body)).raise_for_status()
        for line in (await client.get("/metrics")).text.splitlines():
            if line.startswith("dynamo_component_prompt_tokens_total"):
                print(line)


if __name__ == "__main__":
    asyncio.run(main())
