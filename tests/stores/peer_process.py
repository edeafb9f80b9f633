"""A worker's RAM store behind a peer server, in a process of its own, until stdin ends.

Arguments: address, block size, number of blocks. The first line of stdout is the address to read from.
"""

import asyncio
import sys

from dynamo_sdk.interfaces import BlockOffer
from dynamo_sdk.stores import PeerServer, RamStore, RamStoreConfig
from tests.stores.conftest import block, key


async def main(address, block_bytes, num_blocks):
    store = RamStore(RamStoreConfig(block_bytes=block_bytes, capacity_bytes=num_blocks * block_bytes))
    await store.start()
    for number in range(num_blocks):
        await store.put_many([BlockOffer(key(number), block(number, block_bytes))])
    server = PeerServer([store], block_bytes)
    print((await server.start([address]))[0], flush=True)  # noqa: T201  the parent process reads it
    await asyncio.to_thread(sys.stdin.read)
    await server.close()
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
