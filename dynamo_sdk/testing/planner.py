"""``check_planner``: does anybody's planner keep the promises of ``Planner``?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import msgspec

from dynamo_sdk.interfaces import Planner, PlannerEffects, PlannerInput, ServiceLoad

from .kit import Kit
from .places import Subject
from .report import CheckFailed, Report, require

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
    """``next_tick_s`` is after ``now_s``.

    The shell sleeps until then; a tick at once would never end. Add an interval to ``facts.now_s``.
    """
    for facts, effects in bench.ticks():
        require(
            effects.next_tick_s > facts.now_s, f"at {facts.now_s} s the next tick is {effects.next_tick_s} s"
        )


def targets_are_within_limits(bench: PlannerBench) -> None:
    """Targets name services of the input, within their minimum and maximum.

    Limits are the operator's word. Clamp each target, and leave out what need not change.
    """
    for facts, effects in bench.ticks():
        services = {service.service: service for service in facts.services}
        for name, target in effects.scale_to.items():
            require(name in services, f"scales {name!r}, which is no service ({', '.join(services)})")
            low, high = services[name].min_replicas, services[name].max_replicas
            require(target >= low, f"scales {name} to {target}, the minimum is {low}")
            require(high is None or target <= high, f"scales {name} to {target}, the maximum is {high}")


def growth_fits_the_free_gpus(bench: PlannerBench) -> None:
    """Together the targets take no more GPUs than are free or become free.

    A replica that finds no GPU never becomes ready. Count what shrinks as free, and stop when nothing is
    left.
    """
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
    """Two new planners, given the same ticks, do the same: no clock, no chance of their own.

    The same object decides in simulation, and a decision can be replayed. Take the time from
    ``facts.now_s``, and seed any chance in ``__init__``.
    """
    for (_, one), (_, two) in zip(bench.ticks(1), bench.ticks(1), strict=True):
        require(one.scale_to == two.scale_to, f"scales to {one.scale_to}, then to {two.scale_to}")
        require(one.next_tick_s == two.next_tick_s, "the next tick differs")


def lives_without_measurements(bench: PlannerBench) -> None:
    """A graph without traffic and without GPUs is a normal input; so is one without services.

    A graph that has just started has measured nothing. Treat None as *unknown*, not as zero, and mind empty
    sequences in means.
    """
    planner = bench.factory()
    idle = ServiceLoad(service="Api", num_replicas=1, num_ready=0)
    planner.on_tick(PlannerInput(now_s=0.0, services=(idle,)))
    planner.on_tick(PlannerInput(now_s=1e6, services=()))


def effects_are_data(bench: PlannerBench) -> None:
    """Effects have whole numbers for targets and sentences for reasons, and can be written down as JSON.

    They are logged, shown and replayed. Round targets, and turn numbers into text in ``reasons``.
    """
    for _, effects in bench.ticks(2):
        try:
            copy = msgspec.json.decode(msgspec.json.encode(effects), type=PlannerEffects)
        except (msgspec.MsgspecError, TypeError) as error:
            raise CheckFailed(f"{effects} is no plain data: {error}") from error
        require(copy == effects, f"{effects} came back as {copy}")


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
    effects_are_data,
)


def planner_kit(factory: Callable[[], Planner]) -> Kit[PlannerBench]:
    """The planner checks, ready to run. ``factory()`` makes a new planner."""
    return Kit(subject=Subject.of(factory()), checks=PLANNER_CHECKS, bench=PlannerBench(factory))


def check_planner(factory: Callable[[], Planner]) -> Report:
    """Run every planner check. ``factory()`` makes a new planner."""
    return planner_kit(factory).run_now()
