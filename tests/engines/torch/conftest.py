from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from .models import CONFIGS, load_reference, save_model


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_model(name, tmp_path_factory.mktemp(name)) for name in CONFIGS}


@pytest.fixture(scope="session")
def references(folders: dict[str, Path]) -> dict[str, torch.nn.Module]:
    return {name: load_reference(folder) for name, folder in folders.items()}


@pytest.fixture
def llama(folders: dict[str, Path]) -> Path:
    return folders["llama"]


def _device(name: str) -> object:
    if name == "cpu":
        return name
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
    return pytest.param(name, marks=[pytest.mark.gpu, skip])


@pytest.fixture(params=[_device("cpu"), _device("cuda")])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)
