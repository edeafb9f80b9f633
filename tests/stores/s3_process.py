"""An S3 server until stdin ends; the first line of stdout is its port."""

import logging
import sys

from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").disabled = True
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)  # noqa: T201  the process that waits for it reads it
sys.stdin.read()
server.stop()
