"""Graphs that several modules of this folder look at; each starts once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .running import GRAPHS
from .serving import Served, serve

QUICKSTART = "examples/quickstart.py"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="package")
def disaggregated() -> Iterator[Served]:
    """The quickstart: one prefill worker, one decode worker, the demo model."""
    with serve(QUICKSTART) as served:
        yield served


@pytest.fixture(scope="package")
def aggregated() -> Iterator[Served]:
    """The demo model on one worker: what all other arrangements must agree with."""
    with serve(f"{GRAPHS}:aggregated", "--set", "services.Whole.cpus=1") as served:
        yield served
