"""A router: the worker on which our requests hold least KV."""

from dynamo_sdk.interfaces import Router, RoutingDecision


class Roomiest(Router):
    def select(self, request, candidates, context):
        chosen = min(candidates, key=lambda candidate: candidate.num_active_blocks)
        return RoutingDecision(worker_id=chosen.worker_id, dp_rank=chosen.dp_rank, reason="most room")
