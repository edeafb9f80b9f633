from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from dynamo_sdk.engines.loras import LoraTable, adapter_digest
from dynamo_sdk.errors import InvalidRequest, ModelNotFound
from dynamo_sdk.types import LoraSpec

SQL = LoraSpec(name="sql", path="/adapters/sql")


class Loader:
    """Counts; ``gate`` holds a load or unload up until it is set."""

    def __init__(self) -> None:
        self.num_loads = 0
        self.unloaded: list[int] = []
        self.gate = anyio.Event()
        self.gate.set()
        self.is_broken = False

    async def load(self) -> int:
        await self.gate.wait()
        if self.is_broken:
            raise InvalidRequest("no adapter there", param="lora")
        self.num_loads += 1
        return self.num_loads

    async def unload(self, handle: int) -> None:
        self.unloaded.append(handle)


@pytest.mark.anyio
async def test_what_is_loaded_can_be_used_and_once_unloaded_is_refused():
    table, loader = LoraTable[int](), Loader()
    with pytest.raises(ModelNotFound, match=r"no adapter 'sql' \(loaded: none\)"), table.using("sql"):
        pass
    await table.load(SQL, loader.load)
    with table.using("sql") as handle, table.using(None) as nothing:
        assert (handle, nothing, table.specs()) == (1, None, (SQL,))
    with pytest.raises(ModelNotFound, match=r"no adapter 'poet' \(loaded: sql\)"), table.using("poet"):
        pass
    await table.unload("sql", loader.unload)
    assert (table.specs(), loader.unloaded) == ((), [1])
    with pytest.raises(ModelNotFound), table.using("sql"):
        pass
    with pytest.raises(ModelNotFound):
        await table.unload("sql", loader.unload)


@pytest.mark.anyio
async def test_the_same_again_is_nothing_and_a_taken_name_is_refused():
    table, loader = LoraTable[int](), Loader()
    await table.load(SQL, loader.load)
    await table.load(SQL, loader.load)
    assert loader.num_loads == 1
    with pytest.raises(InvalidRequest, match="loaded from '/adapters/sql'; unload it first"):
        await table.load(LoraSpec(name="sql", path="/elsewhere"), loader.load)


@pytest.mark.anyio
async def test_a_failed_load_leaves_nothing():
    table, loader = LoraTable[int](), Loader()
    loader.is_broken = True
    with pytest.raises(InvalidRequest, match="no adapter there"):
        await table.load(SQL, loader.load)
    assert table.specs() == ()
    loader.is_broken = False
    await table.load(SQL, loader.load)
    assert table.specs() == (SQL,)


@pytest.mark.anyio
async def test_an_adapter_that_comes_just_now_is_no_one_elses():
    table, loader = LoraTable[int](), Loader()
    loader.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(table.load, SQL, loader.load)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(InvalidRequest, match="being loaded or unloaded"):
            await table.load(SQL, loader.load)
        loader.gate.set()
    assert table.specs() == (SQL,)


@pytest.mark.anyio
async def test_unloading_waits_for_those_that_run_and_refuses_others():
    table, loader = LoraTable[int](), Loader()
    await table.load(SQL, loader.load)
    async with anyio.create_task_group() as tasks:
        with table.using("sql"):
            with table.using("sql"):
                tasks.start_soon(table.unload, "sql", loader.unload)
                await anyio.wait_all_tasks_blocked()
                assert table.specs() == ()
                with pytest.raises(ModelNotFound), table.using("sql"):
                    pass
                with pytest.raises(InvalidRequest, match="being loaded or unloaded"):
                    await table.load(SQL, loader.load)
            await anyio.wait_all_tasks_blocked()
            assert loader.unloaded == []
    assert loader.unloaded == [1]
    await table.load(SQL, loader.load)
    with table.using("sql") as handle:
        assert handle == 2


@pytest.mark.anyio
async def test_a_cancelled_unload_can_be_taken_up_again():
    table, loader = LoraTable[int](), Loader()
    await table.load(SQL, loader.load)
    with table.using("sql"):
        with anyio.move_on_after(0):
            await table.unload("sql", loader.unload)
        assert table.specs() == ()
    await table.unload("sql", loader.unload)
    assert loader.unloaded == [1]


def adapter(folder: Path, weights: str) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_text(weights)
    return folder


def test_a_digest_names_config_and_weights(tmp_path: Path):
    one, same, other = (adapter(tmp_path / name, weights) for name, weights in ("ax", "bx", "cy"))
    assert adapter_digest(one) == adapter_digest(same) != adapter_digest(other)
