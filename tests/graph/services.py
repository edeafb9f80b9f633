"""Services that the tests of this folder share."""

from __future__ import annotations

from typing import ClassVar

from dynamo_sdk import depends, endpoint, service
from dynamo_sdk.graph import EngineService, FrontendService
from dynamo_sdk.types import Role


@service
class Prefill(EngineService):
    role: ClassVar[Role] = Role.PREFILL


@service
class Decode(EngineService):
    role: ClassVar[Role] = Role.DECODE


@service
class Worker(EngineService):
    pass


@service
class Lookup:
    def __init__(self, *, size: int = 3, path: str = "") -> None:
        self.size = size
        self.path = path

    @endpoint
    async def find(self, key: str) -> int:
        return len(key)


@service
class Api(FrontendService):
    prefill = depends(Prefill)
    decode = depends(Decode)


@service
class Simple(FrontendService):
    worker = depends(Worker)
    lookup = depends(Lookup)


@service
class Everything(FrontendService):
    prefill = depends(Prefill)
    decode = depends(Decode)
    fallback = depends(Worker)
