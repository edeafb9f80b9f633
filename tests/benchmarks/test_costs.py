"""The history of our own costs."""

import json

from benchmarks.costs import grown, last_costs


def test_a_cost_beyond_the_factor_is_named():
    before = {"a": 1.0, "b": 1.0, "gone": 1.0}
    assert grown(before, {"a": 1.3, "b": 1.31, "new": 9.0}, 1.3) == ["b"]


def test_the_last_line_counts(tmp_path):
    history = tmp_path / "costs.jsonl"
    assert last_costs(history) is None
    lines = [{"commit": name, "costs": {"a": cost}} for name, cost in (("one", 1.0), ("two", 2.0))]
    history.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert last_costs(history) == ("two", {"a": 2.0})
