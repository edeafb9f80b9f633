"""A replica with a child and a daemon that leaves its session and its parent. Prints every pid."""

import os
import signal
import sys

if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
elif "polite" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))

heard, said = os.pipe()


def tell(what: str) -> None:
    os.write(1, f"{what} {os.getpid()}\n".encode())
    os.write(said, b".")


def stay() -> None:
    while True:
        signal.pause()


if os.fork() == 0:
    tell("child")
    stay()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        tell("daemon")
        stay()
    os._exit(0)
for _ in ("child", "daemon"):
    os.read(heard, 1)
tell("replica")
if "exits" in sys.argv:
    os._exit(3)
stay()
