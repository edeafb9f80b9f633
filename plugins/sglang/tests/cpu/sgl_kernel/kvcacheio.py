"""See the package."""

from . import __getattr__  # noqa: F401
