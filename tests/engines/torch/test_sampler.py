"""The sampler against formulas written the slow way, one token at a time."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.engines.torch.sampler import SamplingRow, cut, draw, edit_logits, sample, uniform
from dynamo_sdk.types import SamplingParams

VOCAB = 40


def row(
    prompt: list[int] = (), output: list[int] = (), end_ids: list[int] = (), **params: object
) -> SamplingRow:
    return SamplingRow(
        params=SamplingParams(max_tokens=9, **params), prompt=prompt, output=output, end_ids=end_ids
    )


def random_logits(seed: int, rows: int = 1, vocab: int = VOCAB) -> torch.Tensor:
    return 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


tokens = st.lists(st.integers(0, VOCAB - 1), max_size=12)


@given(
    seed=st.integers(0, 99),
    prompt=tokens,
    output=tokens,
    repetition=st.sampled_from([1.0, 0.5, 1.7]),
    presence=st.sampled_from([0.0, -1.0, 0.75]),
    frequency=st.sampled_from([0.0, 0.3]),
    bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-5, 5, width=32), max_size=3),
    end_ids=st.lists(st.integers(0, VOCAB - 1), max_size=2),
    min_tokens=st.integers(0, 8),
)
def test_edits_equal_the_naive_formula(
    seed, prompt, output, repetition, presence, frequency, bias, end_ids, min_tokens
) -> None:
    logits = random_logits(seed)[0]
    expected = logits.tolist()
    counts = Counter(output)
    for token in range(VOCAB):
        if token in counts or token in prompt:
            expected[token] *= 1 / repetition if expected[token] > 0 else repetition
        if token in counts:
            expected[token] -= presence + frequency * counts[token]
        expected[token] += bias.get(token, 0.0)
        if token in end_ids and len(output) < min_tokens:
            expected[token] = -math.inf
    edit_logits(
        logits,
        row(
            prompt,
            output,
            end_ids,
            repetition_penalty=repetition,
            presence_penalty=presence,
            frequency_penalty=frequency,
            logit_bias=bias,
            min_tokens=min_tokens,
        ),
    )
    assert logits.tolist() == pytest.approx(expected, abs=1e-4)


def naive_kept(logits: list[float], params: SamplingParams) -> set[int]:
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    if params.top_k > 0:
        order = order[: params.top_k]
    weights = [math.exp(logits[token] - logits[order[0]]) for token in order]
    kept, before = set(), 0.0
    for token, weight in zip(order, weights, strict=True):
        if before >= params.top_p * sum(weights) and kept and params.top_p < 1.0:
            break
        before += weight
        if weight >= params.min_p:
            kept.add(token)
    return kept


truncations = st.builds(
    SamplingParams,
    max_tokens=st.just(1),
    top_k=st.sampled_from([0, 0, 1, 3, 10, 1000]),
    top_p=st.sampled_from([1.0, 1.0, 0.999, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0]),
)


@given(
    seed=st.integers(0, 99),
    params=st.lists(truncations, min_size=1, max_size=4),
    vocab=st.sampled_from([7, 600]),
)
def test_truncation_equals_the_naive_formula(seed: int, params: list[SamplingParams], vocab: int) -> None:
    logits = random_logits(seed, len(params), vocab) / 3  # flat enough for nuclei beyond the probe
    thresholds = cut(logits, params)
    for line, threshold, one in zip(logits, thresholds, params, strict=True):
        kept = set(torch.nonzero(line >= threshold)[:, 0].tolist())
        assert kept == naive_kept(line.tolist(), one)


def test_ties_at_the_cut_stay() -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0, 5.0, 0.0]])
    assert cut(logits, [SamplingParams(max_tokens=1, top_k=2)]).tolist() == [5.0]
    assert cut(logits, [SamplingParams(max_tokens=1, top_p=0.4)]).tolist() == [5.0]


def test_uniform_is_even_and_fixed_for_ever() -> None:
    numbers = [uniform(seed, position) for seed in range(50) for position in range(200)]
    assert all(0.0 <= number < 1.0 for number in numbers)
    tenths = Counter(int(number * 10) for number in numbers)
    assert max(abs(tenths[tenth] - 1000) for tenth in range(10)) < 130
    assert len(set(numbers)) == len(numbers)
    assert uniform(-1, 3) == uniform(2**64 - 1, 3)
    # A request that moves between versions of this code must not change its tokens.
    assert uniform(1234, 5) == 0.03336261639003135


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -math.inf]).repeat(4000, 1)
    rows = [row(seed=seed, temperature=0.7) for seed in range(4000)]
    drawn = Counter(draw(logits, rows))
    expected = (logits[0] / 0.7).softmax(-1).tolist()
    assert drawn[3] == 0
    for token, probability in enumerate(expected):
        assert drawn[token] / 4000 == pytest.approx(probability, abs=0.03)


def test_a_draw_does_not_depend_on_its_batch() -> None:
    rows = [
        row(seed=1),
        row(temperature=0.0),
        row(seed=2, top_k=5, temperature=0.4),
        row(seed=3, top_p=0.6, output=[1, 2], presence_penalty=1.0),
        row(seed=4, min_p=0.2, logprobs=2, temperature=1.7),
    ]
    logits = random_logits(5, len(rows))
    together, together_logprobs = sample(logits.clone(), rows)
    for index, one in enumerate(rows):
        alone, alone_logprobs = sample(logits[index : index + 1].clone(), [one])
        assert alone == [together[index]]
        assert alone_logprobs == [together_logprobs[index]]


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = random_logits(6, 2)
    raw = logits.log_softmax(-1)
    biased = row(temperature=0.0, logit_bias={7: 100.0}, logprobs=3)
    token_ids, logprobs = sample(logits.clone(), [biased, row(temperature=0.0)])
    assert token_ids == [7, int(logits[1].argmax())]
    assert logprobs[1] is None
    assert logprobs[0] is not None
    assert logprobs[0].logprob == pytest.approx(raw[0, 7].item(), abs=1e-5)
    values, ids = raw[0].topk(3)
    assert [token for token, _ in logprobs[0].top] == ids.tolist()
    assert [value for _, value in logprobs[0].top] == pytest.approx(values.tolist(), abs=1e-5)


def test_zero_logprobs_are_only_the_chosen_ones() -> None:
    (found,) = sample(random_logits(1), [row(temperature=0.0, logprobs=0)])[1]
    assert found is not None
    assert found.top == ()


def test_everything_else_forbidden_leaves_one() -> None:
    logits = torch.full((1, VOCAB), -math.inf)
    logits[0, 11] = -3.0
    assert sample(logits, [row(seed=9, top_p=0.1, min_p=0.5, temperature=2.0)])[0] == [11]


def test_broken_logits_stay_within_the_vocabulary() -> None:
    logits = torch.full((2, VOCAB), math.nan)
    logits[1] = -math.inf
    token_ids, _ = sample(logits, [row(seed=1), row(seed=2, top_p=0.5)])
    assert all(0 <= token_id < VOCAB for token_id in token_ids)
