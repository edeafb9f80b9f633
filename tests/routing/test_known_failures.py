"""Traffic on which the costs of other KV routers are known to fail, and what ours makes of it."""

from __future__ import annotations

from collections import Counter
from random import Random

from dynamo_sdk.interfaces import Router
from dynamo_sdk.routing.dynamo_kv import DynamoKvRouter
from dynamo_sdk.routing.kv import KvRouter
from dynamo_sdk.routing.policies import LeastLoadedRouter

from .toy_fleet import Prompt, ToyWorker, percentile, serve


def agents(num: int, *, every_s: float) -> list[Prompt]:
    """One request at a time: eight agents, one long system prompt; their histories grow and begin anew."""
    rng, fresh = Random(3), iter(range(1000, 10**9))
    system = list(range(200))
    histories: dict[int, list[int]] = {}
    prompts = []
    for number in range(num):
        agent = rng.randrange(8)
        history = histories.get(agent, system)
        if len(history) > 360:
            history = system
        histories[agent] = history = [*history, *(next(fresh) for _ in range(16))]
        prompts.append(Prompt(number * every_s, history))
    return prompts


def test_paced_agents_do_not_all_go_to_one_worker() -> None:
    """Nothing is ever in flight when the next one comes, so load alone says nothing (the 448/0 split)."""
    prompts = agents(448, every_s=2.0)
    split = Counter(serve([KvRouter()], prompts, [ToyWorker(), ToyWorker()]).chosen)
    assert min(split[0], split[1]) > 0.25 * len(prompts)
    baseline = Counter(serve([DynamoKvRouter()], prompts, [ToyWorker(), ToyWorker()]).chosen)
    assert sorted(baseline.values()) == [448], "else this test no longer shows the failure"


def test_affinity_outlives_the_balance() -> None:
    """Most turns of an agent still find its history."""
    prompts = agents(448, every_s=2.0)
    num_uncached = sum(
        round((ttft_s - 0.01) / 1e-4) for ttft_s in serve([KvRouter()], prompts, [ToyWorker()] * 2).ttft_s
    )
    num_tokens = sum(len(prompt.keys) * 16 for prompt in prompts)
    assert num_uncached < 0.15 * num_tokens


def chats(num: int, *, rate: float, seed: int) -> list[Prompt]:
    """Sixteen system prompts, one popular, each with a question of its own; Poisson arrivals."""
    rng, fresh = Random(seed), iter(range(10**6, 10**9))
    now_s, prompts = 0.0, []
    for _ in range(num):
        now_s += rng.expovariate(rate)
        group = min(rng.randrange(16), rng.randrange(16))
        keys = [*range(group * 1000, group * 1000 + 128), *(next(fresh) for _ in range(64))]
        prompts.append(Prompt(now_s, keys))
    return prompts


def test_a_slow_worker_does_not_keep_its_requests() -> None:
    """One of eight takes ten times as long, and holds what is popular: p99 must not become its own."""
    prompts = chats(2000, rate=24, seed=4)

    def p99_s(router: Router, slowness: float) -> float:
        workers = [ToyWorker() for _ in range(8)]
        workers[0].slowness = slowness
        workers[0].held.update(range(4 * 1000))  # it has the most popular prompts to begin with
        return percentile(serve([router], prompts, workers).ttft_s[200:], 0.99)

    healthy_s = p99_s(KvRouter(), 1.0)
    assert p99_s(KvRouter(), 10.0) < 1.5 * healthy_s
    assert p99_s(DynamoKvRouter(), 10.0) > 3 * healthy_s, "else this test no longer shows the failure"


def test_a_worker_that_hangs_gets_little_and_is_left_alone() -> None:
    prompts = chats(600, rate=24, seed=5)
    workers = [ToyWorker() for _ in range(4)]
    workers[2].free_at_s = 1e9
    outcome = serve([KvRouter()], prompts, workers)
    assert outcome.chosen.count(2) <= 10


def test_a_shared_system_prompt_starves_nobody() -> None:
    """Everybody shares one long prompt that one worker has; under load the others compute it too."""
    fresh, rng, now_s, prompts = iter(range(10**6, 10**9)), Random(6), 0.0, []
    for _ in range(800):
        now_s += rng.expovariate(40)
        prompts.append(Prompt(now_s, [*range(256), *(next(fresh) for _ in range(48))]))
    workers = [ToyWorker() for _ in range(8)]
    workers[0].held.update(range(256))
    outcome = serve([KvRouter()], prompts, workers)
    shares = sorted(outcome.share(worker) for worker in range(8))
    assert shares[-1] < 0.25
    assert sum(share > 0.08 for share in shares) >= 6


def test_frontends_that_choose_at_once_do_not_all_choose_the_same() -> None:
    """Eight frontends, a burst each between two reports: as good as those that look at load alone."""
    rng, fresh = Random(8), iter(range(10**6, 10**9))
    prompts = [
        Prompt(burst * 1.0 + rng.random() * 0.01, [next(fresh) for _ in range(32)])
        for burst in range(60)
        for _ in range(32)
    ]
    prompts.sort(key=lambda prompt: prompt.at_s)

    def p99_s(router: type[Router]) -> float:
        outcome = serve([router() for _ in range(8)], prompts, [ToyWorker() for _ in range(8)])
        return percentile(outcome.ttft_s, 0.99)

    assert p99_s(KvRouter) < 1.1 * p99_s(LeastLoadedRouter)
    assert p99_s(KvRouter) < 1.1 * p99_s(DynamoKvRouter)
