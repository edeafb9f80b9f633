"""Digests of files: names and all bytes count, where they lie does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynamo_sdk.engines.weights import files_digest, folder_digest


def test_contents_and_names_count_and_order_and_place_do_not(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "a").write_bytes(b"a" * 3_000_000)
        (folder / "b").write_bytes(b"")
    whole = files_digest([one / "a", one / "b"])
    assert whole == files_digest([other / "b", other / "a"])
    (other / "b").rename(other / "c")
    assert files_digest([other / "a", other / "c"]) != whole
    (one / "a").write_bytes(b"a" * 2_999_999 + b"b")
    assert files_digest([one / "a", one / "b"]) != whole


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files_digest([tmp_path / "none"])


def test_every_byte_of_a_folders_weights_counts(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        folder_digest(tmp_path)
    weights = tmp_path / "model.safetensors"
    digests = set()
    for place in range(4):
        weights.write_bytes(bytes(number == place for number in range(4)))
        digests.add(folder_digest(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert len(digests | {folder_digest(tmp_path)}) == 5
