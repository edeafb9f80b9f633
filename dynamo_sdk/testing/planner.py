"""``check_planner``: does anybody's planner keep the promises of ``Planner``?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import msgspec

from dynamo_sdk.interfaces import Planner, PlannerEffects, PlannerInput, ServiceLoad

from .report import Report, require, run_checks_sync, subject_of

_NUM_TICKS = 200


@dataclass(frozen=True, slots=True)
class PlannerBench:
    factory: Callable[[], Planner]

    def ticks(self, seed: int = 0) -> Iterator[tuple[PlannerInput, PlannerEffects]]:
        """A run of a new planner whose wishes are carried out: load swings, some services measure nothing."""
        rng = Random(seed)
        planner = self.factory()
        services = [
            ServiceLoad(service="Prefill", num_replicas=1, num_ready=1, gpus_per_replica=1, max_replicas=6),
            ServiceLoad(service="Decode", num_replicas=2, num_ready=2, gpus_per_replica=2, max_replicas=4),
            ServiceLoad(service="Api", num_replicas=1, num_ready=1),
        ]
        num_free_gpus, now_s = 6, 0.0
        for _ in range(_NUM_TICKS):
            services = [_with_load(rng, service) for service in services]
            facts = PlannerInput(now_s=now_s, services=tuple(services), num_free_gpus=num_free_gpus)
            effects = planner.on_tick(facts)
            yield facts, effects
            for index, service in enumerate(services):
                target = effects.scale_to.get(service.service, service.num_replicas)
                num_free_gpus -= (target - service.num_replicas) * service.gpus_per_replica
                services[index] = msgspec.structs.replace(service, num_replicas=target, num_ready=target)
            now_s = effects.next_tick_s


def next_tick_lies_ahead(bench: PlannerBench) -> None:
    """``next_tick_s`` is after ``now_s``."""
    for facts, effects in bench.ticks():
        require(
            effects.next_tick_s > facts.now_s, f"at {facts.now_s} s the next tick is {effects.next_tick_s} s"
        )


def targets_are_within_limits(bench: PlannerBench) -> None:
    """Targets name services of the input, within their minimum and maximum."""
    for facts, effects in bench.ticks():
        services = {service.service: service for service in facts.services}
        for name, target in effects.scale_to.items():
            require(name in services, f"scales {name!r}, which is no service ({', '.join(services)})")
            low, high = services[name].min_replicas, services[name].max_replicas
            require(target >= low, f"scales {name} to {target}, the minimum is {low}")
            require(high is None or target <= high, f"scales {name} to {target}, the maximum is {high}")


def growth_fits_the_free_gpus(bench: PlannerBench) -> None:
    """Together the targets take no more GPUs than are free or become free."""
    for facts, effects in bench.ticks():
        num_more_gpus = sum(
            (effects.scale_to.get(service.service, service.num_replicas) - service.num_replicas)
            * service.gpus_per_replica
            for service in facts.services
        )
        require(
            facts.num_free_gpus is None or num_more_gpus <= max(0, facts.num_free_gpus),
            f"takes {num_more_gpus} more GPUs, {facts.num_free_gpus} are free",
        )


def same_facts_same_effects(bench: PlannerBench) -> None:
    """Two new planners, given the same ticks, do the same: no clock, no chance of their own."""
    for (_, one), (_, two) in zip(bench.ticks(1), bench.ticks(1), strict=True):
        require(one.scale_to == two.scale_to, f"scales to {one.scale_to}, then to {two.scale_to}")
        require(one.next_tick_s == two.next_tick_s, "the next tick differs")


def lives_without_measurements(bench: PlannerBench) -> None:
    """A graph without traffic and without GPUs is a normal input; so is one without services."""
    planner = bench.factory()
    idle = ServiceLoad(service="Api", num_replicas=1, num_ready=0)
    planner.on_tick(PlannerInput(now_s=0.0, services=(idle,)))
    planner.on_tick(PlannerInput(now_s=1e6, services=()))


def _with_load(rng: Random, service: ServiceLoad) -> ServiceLoad:
    is_measured = rng.random() < 0.8
    return msgspec.structs.replace(
        service,
        requests_per_s=rng.random() * 50 if is_measured else 0.0,
        num_running=rng.randrange(100),
        num_waiting=rng.randrange(100),
        isl_mean_tokens=rng.random() * 4000 if is_measured else None,
        osl_mean_tokens=rng.random() * 500 if is_measured else None,
        ttft_p50_ms=rng.random() * 2000 if is_measured else None,
        itl_p50_ms=rng.random() * 200 if is_measured else None,
        kv_usage=rng.random() if is_measured else None,
    )


PLANNER_CHECKS = (
    next_tick_lies_ahead,
    targets_are_within_limits,
    growth_fits_the_free_gpus,
    same_facts_same_effects,
    lives_without_measurements,
)


def check_planner(factory: Callable[[], Planner]) -> Report:
    """Run every planner check. ``factory()`` makes a new planner."""
    subject = subject_of(factory())
    return run_checks_sync(subject, PLANNER_CHECKS, PlannerBench(factory))
