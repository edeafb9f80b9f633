"""Across hosts, as far as one host can show it: every address is another than loopback, all is TCP."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def can_make_namespaces() -> bool:
    try:
        done = subprocess.run(
            ["unshare", "-n", "ip", "link", "set", "lo", "up"], capture_output=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0


@pytest.mark.skipif(not can_make_namespaces(), reason="needs unshare and ip, and the right to use them")
def test_a_worker_joins_over_tcp_with_the_secret_and_not_without() -> None:
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-m", "tests.e2e.off_loopback"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["url"].startswith("http://10.9.9.1:")
    assert seen["join"].startswith("tcp:10.9.9.1:")
    assert "shared secret" in seen["joined"]["wrong"]
    assert "ready\n" not in seen["joined"]["wrong"]
    assert "ready\n" in seen["joined"]["s3cret"]
    assert seen["statuses"] == [200] * 6
