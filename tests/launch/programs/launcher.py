"""A launcher that is there to be killed: guards the command it is given, forwards what it prints."""

import os
import sys
from pathlib import Path

import anyio

from dynamo_sdk.launch.processes import GuardedProcess


async def main() -> None:
    scratch, *command = sys.argv[1:]
    process = await GuardedProcess.start(
        command, worker_id="victim", environment=os.environ, grace_s=60, scratch=Path(scratch)
    )
    os.write(1, f"guardian {process.guardian_pid}\n".encode())
    async for piece in process.output():
        os.write(1, piece)


anyio.run(main)
