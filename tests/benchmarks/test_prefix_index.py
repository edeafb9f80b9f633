from __future__ import annotations

import pytest

from benchmarks import prefix_index


@pytest.mark.parametrize("workload", ["unique", "shared"])
def test_a_cell_finds_what_it_has_stored(workload: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prefix_index, "BUDGET_S", 0.0)
    cell = prefix_index.Cell("ours", workload, 8, 4096, 32, 16)
    found = prefix_index.run_cell(cell)
    assert found["hit_workers"] >= (1 if workload == "unique" else prefix_index.COPIES)
    assert found["half_workers"] >= 1
    assert found["miss_workers"] == 0
    assert found["store_events_per_s"] > 0
    assert found["remove_blocks_per_s"] > 0
