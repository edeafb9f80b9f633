from __future__ import annotations

from pathlib import Path

import pytest

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.services.decision_writer import DecisionWriter


def test_two_files_at_most_and_nothing_lost_but_the_oldest(tmp_path: Path) -> None:
    writer = DecisionWriter(str(tmp_path / "logs"), "w", 100)
    frames = [bytes([number]) * 20 for number in range(9)]
    for frame in frames:
        writer.write(frame)
    writer.close()
    writer.close()
    writer.write(b"too late")
    names = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert names == ["w.log", "w.log.1"]
    kept = (tmp_path / "logs" / "w.log.1").read_bytes() + writer.path.read_bytes()
    assert kept == b"".join(frames[-3:])
    assert len(kept) <= 100


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="decision_log: cannot write"):
        DecisionWriter(str(tmp_path / "file"), "w", 100)


def test_a_disk_that_fails_ends_the_log_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = DecisionWriter(str(tmp_path / "logs"), "w", 10)
    writer.write(b"12345")
    (tmp_path / "logs" / "w.log").unlink()
    (tmp_path / "logs").rmdir()
    writer.write(b"67890")
    writer.write(b"12345")
    assert len(caplog.messages) == 1
    assert "ends here" in caplog.messages[0]
