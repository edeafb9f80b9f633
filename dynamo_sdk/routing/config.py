"""Arguments of the built-in routers, as a deploy file gives them.

Names and import strings are tried out when a configuration is made, so that a plan does not hold what cannot
run.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dynamo_sdk.errors import ConfigError

from .importing import imported


def _known_stage(path: str) -> str:
    try:
        imported(path)
    except ConfigError as error:
        raise ValueError(error.message) from error
    return path


def _known_router(name: str) -> str:
    from .naming import router_named  # which imports the routers, and they this module

    try:
        router_named(name)
    except ConfigError as error:
        raise ValueError(error.message) from error
    return name


StagePath = Annotated[str, AfterValidator(_known_stage)]
RouterName = Annotated[str, AfterValidator(_known_router)]


class LoadConfig(BaseModel):
    """``max_load_age_s``: reports of workers older than this are ignored. ``waiting_weight``: what one
    request that a worker reports as waiting costs beyond being one more request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_load_age_s: float = Field(default=10.0, gt=0)
    waiting_weight: float = Field(default=1.0, ge=0)


class KvConfig(BaseModel):
    """``*_credit``: the share of a block's prefill that is saved where the block is not on the device, but in
    that tier. ``temperature``: 0 = the lowest cost; above, by chance, the likelier the cheaper. ``filters``,
    ``scorers``, ``picker``: import strings of stages; filters go first, scorers add to the cost, a picker
    takes the place of ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host_credit: float = Field(default=0.8, ge=0, le=1)
    disk_credit: float = Field(default=0.3, ge=0, le=1)
    remote_credit: float = Field(default=0.6, ge=0, le=1)
    max_load_age_s: float = Field(default=10.0, gt=0)
    temperature: float = Field(default=0.0, ge=0)
    filters: tuple[StagePath, ...] = ()
    scorers: tuple[StagePath, ...] = ()
    picker: StagePath | None = None


class SessionConfig(BaseModel):
    """``ttl_s``: how long after its last request a session stays bound. ``otherwise``: who decides about
    requests without one, and about the first of each: a router by name or import string."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ttl_s: float = Field(default=600.0, gt=0)
    max_sessions: int = Field(default=100_000, ge=1)
    otherwise: RouterName = "kv"


class ShadowConfig(BaseModel):
    """``acting`` decides, ``shadows`` look on: routers by name or import string, with default arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    acting: RouterName = "kv"
    shadows: tuple[RouterName, ...] = ("dynamo-kv", "least-loaded")


class DynamoKvConfig(BaseModel):
    """Names and defaults of NVIDIA Dynamo's own settings, shortened. ``temperature`` 0 = the lowest cost."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prefill_load_scale: float = Field(default=1.0, ge=0)
    device_credit: float = Field(default=1.0, ge=0)
    host_credit: float = Field(default=0.75, ge=0)
    disk_credit: float = Field(default=0.25, ge=0)
    temperature: float = Field(default=0.0, ge=0)
