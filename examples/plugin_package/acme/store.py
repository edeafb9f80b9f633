"""A KV store: one file per block, with a digest in front; the oldest files make room."""

import hashlib
import os
from pathlib import Path

from anyio import to_thread

from dynamo_sdk.interfaces import KVStore, KVStoreStatistics
from dynamo_sdk.plugins.config import PluginConfig


class FolderConfig(PluginConfig):
    path: Path
    capacity_bytes: int = 1 << 30


class FolderStore(KVStore):
    def __init__(self, config):
        self._folder = config.path
        self._capacity_bytes = config.capacity_bytes
        self._sizes = {}  # key -> bytes on disk, oldest first

    async def start(self):
        self._folder.mkdir(parents=True, exist_ok=True)
        files = sorted(self._folder.glob("*.kv"), key=lambda file: file.stat().st_mtime_ns)
        self._sizes = {bytes.fromhex(file.stem): file.stat().st_size for file in files}

    async def put(self, key, block):
        content = self._digest(key, block) + bytes(block)
        if len(content) > self._capacity_bytes:
            return False
        self._sizes.pop(key, None)
        while sum(self._sizes.values()) + len(content) > self._capacity_bytes:
            await self.delete([next(iter(self._sizes))])
        self._sizes[key] = len(content)
        await to_thread.run_sync(self._write, self._file(key), content)
        return True

    async def get(self, key):
        content = await to_thread.run_sync(self._read, self._file(key))
        digest, block = content[:32], content[32:]
        return block if digest == self._digest(key, block) else None

    async def contains(self, keys):
        return [key in self._sizes for key in keys]

    async def delete(self, keys):
        for key in keys:
            self._sizes.pop(key, None)
            self._file(key).unlink(missing_ok=True)

    def statistics(self):
        sizes = self._sizes.values()
        return KVStoreStatistics(
            num_blocks=len(sizes), used_bytes=sum(sizes), capacity_bytes=self._capacity_bytes
        )

    def _file(self, key):
        return self._folder / f"{key.hex()}.kv"

    def _digest(self, key, block):
        return hashlib.blake2b(bytes(key) + bytes(block), digest_size=32).digest()

    def _write(self, file, content):
        part = file.with_suffix(f".{os.urandom(8).hex()}")  # found by nobody until it is whole
        part.write_bytes(content)
        part.replace(file)

    def _read(self, file):
        try:
            return file.read_bytes()
        except FileNotFoundError:
            return b""
