"""Tiers that other workers read: what is said between the SDK's worker and vLLM's process with the stores.

::

    before vLLM starts      ask ──> a file: where to listen, and the secret ──> asked
    once it has its pages   answered <── a file each: where it is reached <───── answer
    with a request          hint ──> SamplingParams.extra_args ──> source_of

vLLM writes its configuration into logs, so nothing of this is in it but the folder, which is private.

Each process of a vLLM has a part of every block, and reads that part from the process of the same rank. So
the address of a worker is that of each rank in turn, with a comma in between.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import KVSharing
from dynamo_sdk.types import KVSource

HINT = "dynamo_sdk_kv_source"
"""Under this name ``extra_args`` says who else has a request's blocks."""
ASKED = "tiers-asked.json"
ANSWERED = "tiers-answered-"


def ask(folder: Path, sharing: KVSharing) -> None:
    """Whoever has the stores should have others read them."""
    _write(folder / ASKED, msgspec.json.encode(sharing))


def asked(folder: Path) -> KVSharing:
    """Raises ``ConfigError``."""
    try:
        return msgspec.json.decode((folder / ASKED).read_bytes(), type=KVSharing)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"KV tiers: the worker did not say where others may read them: {error}") from error


def address_of(rank: int, num_ranks: int, asked_for: str) -> str:
    """Where this process is to listen; a port that is not 0 is for one alone."""
    is_file = asked_for.startswith("unix:")
    return f"{asked_for}.{rank}" if is_file and num_ranks > 1 else asked_for


def answer(folder: Path, rank: int, address: str) -> None:
    """Others reach the tiers of process ``rank`` at ``address``."""
    _write(folder / f"{ANSWERED}{rank}", address.encode())


def answered(folder: Path) -> str | None:
    """By all processes. None: nobody can read them."""
    ranks = sorted(int(path.name.removeprefix(ANSWERED)) for path in folder.glob(f"{ANSWERED}*"))
    return ",".join((folder / f"{ANSWERED}{rank}").read_text() for rank in ranks) or None


def part_of(source: KVSource, rank: int, num_ranks: int) -> KVSource | None:
    """``source`` for process ``rank``; None where it has another number of processes, and so other parts."""
    addresses = source.address.split(",")
    return replace(source, address=addresses[rank]) if len(addresses) == num_ranks else None


def hint(source: KVSource) -> dict[str, Any]:
    """As part of ``extra_args``."""
    return {HINT: msgspec.to_builtins(source)}


def source_of(sampling: object) -> KVSource | None:
    """What the ``SamplingParams`` of a request say; None where they say nothing that makes sense."""
    said = (getattr(sampling, "extra_args", None) or {}).get(HINT)
    if said is None:
        return None
    try:
        return msgspec.convert(said, KVSource)
    except msgspec.ValidationError:
        return None


def num_known_of(source: KVSource | None, first: int) -> int:
    """How many of a request's blocks from ``first`` on ``source`` is said to have."""
    return 0 if source is None else max(0, source.num_blocks - first)


def rest_of(source: KVSource | None, first: int) -> KVSource | None:
    """``source``, for somebody who counts a request's blocks from ``first`` on; None where it has none."""
    num_blocks = num_known_of(source, first)
    return replace(source, num_blocks=num_blocks) if source is not None and num_blocks else None


def _write(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
