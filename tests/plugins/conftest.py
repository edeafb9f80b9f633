from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``install("acme-vllm", "vllm", source)`` puts a distribution with one plugin on the import path.

    Returns the file of its module. ``value`` overrides what the entry point names.
    """
    modules: list[str] = []

    def put(
        distribution: str,
        entry_point: str,
        source: str = "",
        *,
        version: str = "1.0",
        value: str | None = None,
    ) -> Path:
        site = tmp_path / distribution
        module = f"{distribution.replace('-', '_')}_plugin"
        metadata = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        (metadata / "entry_points.txt").write_text(f"[dynamo_sdk]\n{entry_point} = {value or module}\n")
        file = site / f"{module}.py"
        file.write_text(dedent(source))
        monkeypatch.syspath_prepend(str(site))
        modules.append(module)
        return file

    yield put
    for module in modules:
        sys.modules.pop(module, None)
