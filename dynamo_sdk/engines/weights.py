"""What tells the weights of two models, or two versions of one, apart: every byte of their files.

KV lives longer than the process that computed it: on disks, in buckets, with other workers. A sample of the
files would miss an edit of a few rows, and the blocks of one model would be found by the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

from xxhash import xxh3_128

DIGEST_BYTES = 16
_PATTERNS = ("config.json", "adapter_config.json", "*.safetensors", "*.bin", "*.pt")
_PIECE_BYTES = 1 << 20


def folder_digest(folder: Path) -> str:
    """``files_digest`` of the configuration and weights of a model or an adapter. Raises ``OSError`` where
    there are none."""
    files = {file for pattern in _PATTERNS for file in folder.glob(pattern)}
    if not files:
        raise FileNotFoundError(f"no configuration and no weights in {folder}")
    return files_digest(files)


def files_digest(files: Iterable[Path]) -> str:
    """32 hex digits over the names and contents of ``files``, in order of their names. Some gigabytes a
    second where they lie in the page cache, as when a model was just loaded. Raises ``OSError``."""
    digest = blake2b(digest_size=DIGEST_BYTES)
    piece = memoryview(bytearray(_PIECE_BYTES))
    for file in sorted(files, key=lambda file: file.name):
        content = xxh3_128()
        with file.open("rb", buffering=0) as opened:
            while num_bytes := opened.readinto(piece):
                content.update(piece[:num_bytes])
        name = file.name.encode()
        digest.update(len(name).to_bytes(4, "little") + name + content.digest())
    return digest.hexdigest()
