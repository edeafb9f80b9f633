from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from dynamo_sdk.metrics import ALL_METRICS, FrontendMetrics, MetricKind, Outcome, WorkerMetrics, merge_texts
from dynamo_sdk.metrics.document import metrics_page


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(text: bytes, name: str, **labels: str) -> float:
    return samples(text)[name, frozenset({"worker_id": "", **labels}.items())]


def test_names_are_unique_and_say_their_unit() -> None:
    names = [metric.name for metric in ALL_METRICS]
    assert len(set(names)) == len(names)
    for metric in ALL_METRICS:
        assert metric.name.startswith(("dynamo_frontend_", "dynamo_component_", "dynamo_router_", "kvbm_"))
        assert metric.name.endswith("_total") is (metric.kind is MetricKind.COUNTER)
        assert bool(metric.buckets) is (metric.kind is MetricKind.HISTOGRAM)
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert metric.help.endswith(".")


def test_the_page_in_the_docs_is_this_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert page.read_text() == metrics_page(), "run: python -m dynamo_sdk.metrics.document > docs/metrics.md"


def test_token_times_of_a_choice() -> None:
    metrics = FrontendMetrics()
    model = metrics.model("m")
    timer = model.choice(received_s=100.0)
    assert value(metrics.render(), "dynamo_frontend_queued_requests", model="m") == 1
    timer.on_tokens(0, 100.1)
    timer.on_tokens(1, 100.2)
    timer.on_tokens(4, 100.6)
    timer.on_tokens(1, 100.7)
    timer.close()
    timer.close()
    text = metrics.render()
    assert value(text, "dynamo_frontend_queued_requests", model="m") == 0
    assert value(text, "dynamo_frontend_time_to_first_token_seconds_sum", model="m") == pytest.approx(0.2)
    assert value(text, "dynamo_frontend_inter_token_latency_seconds_count", model="m") == 5
    assert value(text, "dynamo_frontend_inter_token_latency_seconds_sum", model="m") == pytest.approx(0.5)


def test_a_choice_without_tokens_leaves_the_queue() -> None:
    metrics = FrontendMetrics()
    metrics.model("m").choice(received_s=0.0).close()
    text = metrics.render()
    assert value(text, "dynamo_frontend_queued_requests", model="m") == 0
    assert value(text, "dynamo_frontend_time_to_first_token_seconds_count", model="m") == 0


def test_outcomes_and_migrations() -> None:
    metrics = FrontendMetrics()
    for outcome in Outcome:
        metrics.count_request(model="m", endpoint="completions", outcome=outcome)
    metrics.model("m").count_migration(had_tokens=True)
    text = metrics.render()
    for outcome in Outcome:
        labels = {"model": "m", "endpoint": "completions", "status": outcome.value}
        assert value(text, "dynamo_frontend_requests_total", **labels) == 1
    name = "dynamo_frontend_model_migration_total"
    assert value(text, name, model="m", migration_type="ongoing_request") == 1
    assert value(text, name, model="m", migration_type="new_request") == 0


def worker(worker_id: str, num_tokens: int) -> bytes:
    metrics = WorkerMetrics(service="Decode", worker_id=worker_id, role="decode")
    metrics.decode_tokens.inc(num_tokens)
    metrics.transferred("shm", 4096, 0.02)
    metrics.transferred("", 512, 0.01)
    return metrics.render()


def test_texts_of_several_workers_merge_into_one_valid_text() -> None:
    frontend = FrontendMetrics(worker_id="c")
    frontend.model("m")
    texts = [FrontendMetrics().render(), frontend.render(), worker("a", 3), worker("b", 5)]
    merged = merge_texts(texts)
    expected = {
        key: number
        for text in texts
        for key, number in samples(text).items()
        if not key[0].endswith("_created")
    }
    assert samples(merged) == expected
    heads = [line for line in merged.splitlines() if line.startswith(b"# TYPE")]
    assert len(heads) == len(set(heads))
    labels = {"service": "Decode", "role": "decode"}
    assert value(merged, "dynamo_component_decode_tokens_total", worker_id="b", **labels) == 5
    for back_end, num_bytes in (("shm", 4096), ("engine", 512)):
        name, more = "dynamo_component_kv_transfer_bytes_total", {"worker_id": "b", "back_end": back_end}
        assert value(merged, name, **labels, **more) == num_bytes


def test_merging_nothing() -> None:
    assert merge_texts([]) == b""
    assert merge_texts([b"", b"\n# a comment\n"]) == b""


@given(texts=st.lists(st.binary(max_size=60)))
def test_merging_any_bytes_does_not_fail(texts: list[bytes]) -> None:
    merge_texts([b"# HELP " + text for text in texts] + texts)
