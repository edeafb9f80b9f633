"""Step times from a table."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.engines.mocker.profile import Curve, ProfileTiming

from .test_timing import work
from .virtual import ask, new_core, prompt, run

ROWS = [
    {"phase": "prefill", "num_tokens": 100, "ms": 10},
    {"phase": "prefill", "num_tokens": 300, "ms": 20},
    {"phase": "decode", "num_requests": 1, "num_tokens": 0, "ms": 4},
    {"phase": "decode", "num_requests": 1, "num_tokens": 1000, "ms": 6},
    {"phase": "decode", "num_requests": 9, "num_tokens": 0, "ms": 8},
    {"phase": "decode", "num_requests": 9, "num_tokens": 1000, "ms": 14},
]


@pytest.fixture(params=["json", "csv"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"h100.{request.param}"
    if request.param == "json":
        path.write_bytes(msgspec.json.encode(ROWS))
    else:
        names = ["phase", "num_requests", "num_tokens", "ms"]
        lines = [",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in ROWS)]
        path.write_text("\n".join(lines))
    return path


def test_between_and_beyond_the_measurements(table: Path) -> None:
    timing = ProfileTiming(path=str(table))
    for num_tokens, ms in [(100, 10), (150, 12.5), (500, 30), (0, 5)]:
        assert timing.prefill_s(work(prefill=(1, num_tokens))) * 1e3 == pytest.approx(ms)
    for size, num_tokens, ms in [
        (1, 500, 5),
        (9, 500, 11),
        (5, 500, 8),
        (5, 0, 6),
        (17, 0, 12),
        (1, 2000, 8),
    ]:
        assert timing.decode_s(work(decode=(size, num_tokens))) * 1e3 == pytest.approx(ms)


def test_never_below_zero(tmp_path: Path) -> None:
    path = tmp_path / "steep.csv"
    path.write_text("phase,num_requests,num_tokens,ms\nprefill,,100,1\nprefill,,200,9\ndecode,1,5,7\n")
    timing = ProfileTiming(path=str(path))
    assert timing.prefill_s(work(prefill=(1, 1))) == 0.0
    assert timing.decode_s(work(decode=(8, 999))) == pytest.approx(7e-3)  # one measurement: a constant


def test_an_engine_runs_on_it(table: Path) -> None:
    core = new_core(
        timing="dynamo_sdk.engines.mocker.profile:ProfileTiming", timing_args={"path": str(table)}
    )
    life = run(core, [(0.0, ask("a", prompt(200), 2))])["a"]
    assert life.token_ms == pytest.approx([15.0, 15.0 + 4.402])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.json", "[]", "at least one prefill and one decode row"),
        ("t.json", "[", "truncated"),
        ("t.csv", "phase,num_tokens,ms\nprefil,1,2\n", "prefil"),
        (
            "t.csv",
            "phase,num_tokens,ms\nprefill,1,2\nprefill,1,3\ndecode,1,1\n",
            "two measurements of one size",
        ),
        ("t.txt", "", "write it as .json or .csv"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        ProfileTiming(path=str(path))
    assert str(path) in str(caught.value)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.csv"):
        ProfileTiming(path=str(tmp_path / "nowhere.csv"))


@given(
    st.lists(
        st.tuples(st.integers(0, 1000), st.floats(-100, 100)), min_size=2, unique_by=lambda point: point[0]
    ),
    st.floats(0, 1),
)
def test_a_curve_is_numpys_between_its_ends(points: list[tuple[int, float]], part: float) -> None:
    xs, ys = zip(*sorted(points), strict=True)
    x = xs[0] + part * (xs[-1] - xs[0])
    assert Curve(points).at(x) == pytest.approx(float(np.interp(x, xs, ys)), abs=1e-6)
