"""Objects in an S3 bucket, by name: the only module that knows ``obstore``."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from dynamo_sdk.errors import ConfigError

from .config import S3StoreConfig

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config, S3Store

_MISSING = "an S3 store needs obstore: pip install 'dynamo-sdk[s3]'"
_FIRST_BACKOFF_S = 0.05


class ObjectError(Exception):
    """The server did not answer, or not with what was asked for. One line."""


class ObjectClient:
    """Calls are made on one event loop, any number at once. Each may raise ``ObjectError``."""

    def __init__(self, config: S3StoreConfig) -> None:
        """Raises ``ConfigError`` when ``obstore`` is missing or the settings mean nothing to it."""
        try:
            import obstore
            from obstore.exceptions import BaseError
            from obstore.store import S3Store
        except ImportError as error:
            raise ConfigError(_MISSING) from error
        self._obstore = obstore
        self._errors = (BaseError, OSError)
        self._place = f"bucket {config.bucket!r} at {config.endpoint_url or 'AWS'}"
        try:
            self._bucket: S3Store = S3Store(
                config.bucket,
                prefix=config.prefix or None,
                config=_s3_config(config),
                client_options=_client_config(config),
                retry_config={
                    "max_retries": 1,
                    "retry_timeout": timedelta(seconds=config.timeout_s),
                    "backoff": {"init_backoff": timedelta(seconds=_FIRST_BACKOFF_S)},
                },
            )
        except (BaseError, ValueError, OSError) as error:
            raise ConfigError(f"{self._place} cannot be used: {_first_line(error)}") from error

    async def check(self) -> None:
        """Raises ``ConfigError`` when the server answers that this can never work."""
        errors = self._obstore.exceptions
        try:
            async for _ in self._obstore.list(self._bucket, chunk_size=1):
                return
        except (errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
            raise ConfigError(
                f"{self._place} refuses these credentials; they need to get, put, delete and list "
                f"(without the last one, what is missing looks forbidden): {_first_line(error)}"
            ) from error
        except self._errors as error:
            if "NoSuchBucket" in str(error):
                raise ConfigError(f"{self._place} does not exist; create it first") from error
            raise ObjectError(_first_line(error)) from error

    async def has(self, name: str) -> bool:
        try:
            await self._obstore.head_async(self._bucket, name)
        except FileNotFoundError:
            return False
        except self._errors as error:
            raise ObjectError(_first_line(error)) from error
        return True

    async def get(self, name: str, max_bytes: int) -> memoryview | None:
        """None: there is no such object. Of a larger one than ``max_bytes``, nothing is read: empty."""
        try:
            answer = await self._obstore.get_async(self._bucket, name)
            if answer.meta["size"] > max_bytes:
                return memoryview(b"")
            return memoryview(await answer.bytes_async())
        except FileNotFoundError:
            return None
        except self._errors as error:
            raise ObjectError(_first_line(error)) from error

    async def put(self, name: str, content: bytes) -> None:
        try:
            await self._obstore.put_async(self._bucket, name, content, use_multipart=False)
        except self._errors as error:
            raise ObjectError(_first_line(error)) from error

    async def delete(self, names: list[str]) -> None:
        """Names without an object are fine."""
        try:
            await self._obstore.delete_async(self._bucket, names)
        except FileNotFoundError:
            return
        except self._errors as error:
            raise ObjectError(_first_line(error)) from error


def _s3_config(config: S3StoreConfig) -> S3Config:
    settings: S3Config = {"virtual_hosted_style_request": False}
    if config.endpoint_url is not None:
        settings["endpoint"] = config.endpoint_url
    if config.region is not None:
        settings["region"] = config.region
    if config.access_key_id is not None and config.secret_access_key is not None:
        settings["access_key_id"] = config.access_key_id
        settings["secret_access_key"] = config.secret_access_key.get_secret_value()
    if config.session_token is not None:
        settings["session_token"] = config.session_token.get_secret_value()
    return settings


def _client_config(config: S3StoreConfig) -> ClientConfig:
    return {
        "allow_http": (config.endpoint_url or "").startswith("http://"),
        "timeout": timedelta(seconds=config.timeout_s),
        "connect_timeout": timedelta(seconds=config.connect_timeout_s),
    }


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
