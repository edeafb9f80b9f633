"""Arguments of the built-in routers, as a deploy file gives them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class LoadConfig(BaseModel):
    """``max_load_age_s``: reports of workers older than this are ignored. ``waiting_weight``: what one
    request that a worker reports as waiting costs beyond being one more request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_load_age_s: float = Field(default=10.0, gt=0)
    waiting_weight: float = Field(default=1.0, ge=0)
