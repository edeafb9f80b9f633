"""What users write for an engine of another project, and what its version takes."""

from __future__ import annotations

import pytest
from pydantic import Field, ValidationError

from dynamo_sdk.engines.foreign_arguments import ForeignArguments, accepted, known_names, require_known
from dynamo_sdk.errors import ConfigError


class Config(ForeignArguments):
    owned = {"model": "the deploy file names it"}

    lease_s: float = Field(default=30.0)


def old(prompt: str, *, priority: int = 0) -> None: ...


def newest(prompt: str, **anything: object) -> None: ...


def test_what_is_no_field_is_the_engines() -> None:
    config = Config.model_validate({"lease_s": 5, "max_num_seqs": 8})
    assert (config.lease_s, config.written) == (5.0, {"max_num_seqs": 8})


def test_some_arguments_are_not_the_users() -> None:
    with pytest.raises(ValidationError, match="model cannot be set here: the deploy file names it"):
        Config.model_validate({"model": "x"})


def test_a_version_gets_what_it_knows() -> None:
    wanted = {"priority": 1, "data_parallel_rank": 2}
    assert accepted(old, wanted) == {"priority": 1}
    assert accepted(newest, wanted) == wanted
    assert (known_names(old), known_names(newest)) == ({"prompt", "priority"}, None)


def test_users_write_what_it_knows() -> None:
    require_known(old, ["priority"], engine="Engine")
    require_known(newest, ["prioritty"], engine="Engine")
    with pytest.raises(ConfigError, match=r"no such argument; did you mean 'priority'") as caught:
        require_known(old, ["prompt", "prioritty"], engine="Engine", path="cache")
    assert caught.value.param == "cache.prioritty"
