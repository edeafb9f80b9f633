"""A planner: so many requests per replica, and no more GPUs than there are."""

from dynamo_sdk.interfaces import Planner, PlannerEffects
from dynamo_sdk.plugins.config import PluginConfig


class QueueConfig(PluginConfig):
    requests_per_replica: int = 16
    interval_s: float = 10.0


class QueuePlanner(Planner):
    def __init__(self, config):
        self._config = config

    def on_tick(self, facts):
        scale_to, num_free_gpus = {}, facts.num_free_gpus
        for service in facts.services:
            num_requests = service.num_running + service.num_waiting
            target = -(-num_requests // self._config.requests_per_replica)
            target = max(service.min_replicas, min(target, service.max_replicas or target))
            if num_free_gpus is not None and service.gpus_per_replica:
                target = min(target, service.num_replicas + max(0, num_free_gpus) // service.gpus_per_replica)
                num_free_gpus -= (target - service.num_replicas) * service.gpus_per_replica
            if target != service.num_replicas:
                scale_to[service.service] = target
        reasons = tuple(f"{name} needs {target} replicas" for name, target in scale_to.items())
        return PlannerEffects(
            next_tick_s=facts.now_s + self._config.interval_s, scale_to=scale_to, reasons=reasons
        )
