from __future__ import annotations

from pathlib import Path

import pytest

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.runtime.clock import ManualClock
from dynamo_sdk.services.decision_writer import FLUSH_S, DecisionWriter


def test_two_files_at_most_and_nothing_lost_but_the_oldest(tmp_path: Path) -> None:
    writer = DecisionWriter(str(tmp_path / "logs"), "w", 100, ManualClock())
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


def test_what_is_written_reaches_the_disk_a_second_later(tmp_path: Path) -> None:
    clock = ManualClock()
    writer = DecisionWriter(str(tmp_path), "w", 1 << 20, clock)
    assert clock.next_timer_s() is None, "nothing to do while nothing is written"
    writer.write(b"one")
    clock.advance_nowait(FLUSH_S / 2)
    writer.write(b"two")
    assert writer.path.read_bytes() == b""
    clock.advance_nowait(FLUSH_S / 2)
    assert writer.path.read_bytes() == b"onetwo"
    assert clock.next_timer_s() is None
    writer.write(b"three")
    writer.close()
    assert clock.next_timer_s() is None
    assert writer.path.read_bytes() == b"onetwothree"


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="decision_log: cannot write"):
        DecisionWriter(str(tmp_path / "file"), "w", 100, ManualClock())


def test_a_disk_that_fails_ends_the_log_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    writer = DecisionWriter(str(tmp_path / "logs"), "w", 10, clock)
    writer.write(b"12345")
    (tmp_path / "logs" / "w.log").unlink()
    (tmp_path / "logs").rmdir()
    writer.write(b"67890")
    writer.write(b"12345")
    clock.advance_nowait(FLUSH_S)
    assert len(caplog.messages) == 1
    assert "ends here" in caplog.messages[0]
