"""What a deploy file may say about the ``openai`` engine (``services.X.args``)."""

from __future__ import annotations

from pydantic import Field

from dynamo_sdk.plugins.config import PluginConfig


class OpenAIConfig(PluginConfig):
    """``url`` ends before ``/v1``."""

    url: str = Field(pattern=r"^https?://", description="the server, such as http://127.0.0.1:8000")
    model: str | None = Field(
        default=None, description="what the server calls the model; without it, as here, or its only one"
    )
    api_key_env: str | None = Field(
        default=None, description="the environment variable that holds the server's API key"
    )
    context_length: int | None = Field(
        default=None, ge=2, description="without it, what the server says, or the model's config.json"
    )
    connect_timeout_s: float = Field(default=5.0, gt=0, description="for a connection to the server")
    read_timeout_s: float = Field(
        default=120.0, gt=0, description="a server that says nothing for so long has failed"
    )
