"""What can be seen to fail before the first process starts."""

from __future__ import annotations

import shutil

from dynamo_sdk.errors import ConfigError
from dynamo_sdk.interfaces import LaunchOptions
from dynamo_sdk.types.plan import DeploymentPlan, ServicePlan

from .listening import check_join


def chosen_services(plan: DeploymentPlan, options: LaunchOptions) -> tuple[ServicePlan, ...]:
    """What this launcher starts. Raises ``ConfigError`` for what can be seen to fail."""
    services = plan.services
    if options.join is not None:
        check_join(options.join, options.secret)
    if options.only is not None:
        services = tuple(service for service in services if service.name == options.only)
        if not services:
            known = ", ".join(service.name for service in plan.services)
            raise ConfigError(f"--only {options.only}: the graph has no such service (services: {known})")
        if options.join is None:
            raise ConfigError(
                f"--only {options.only} needs a graph to join: --join ADDRESS, as `dynamo-sdk run` prints it"
            )
    for service in services:
        if service.python is not None and shutil.which(service.python) is None:
            raise ConfigError(
                f"services.{service.name}.python: {service.python} is no program that can be run; "
                "name the interpreter of the environment that has the engine, such as ./.venv-vllm/bin/python"
            )
    return services


def check_one_process(plan: DeploymentPlan, options: LaunchOptions) -> None:
    """Raises ``ConfigError`` for what one process cannot do: be several interpreters, see several sets of
    GPUs, join another graph."""
    if options.only is not None or options.join is not None:
        raise ConfigError("--only and --join need processes of their own; use --launcher local")
    for service in plan.services:
        if service.python is not None:
            raise ConfigError(
                f"services.{service.name}.python needs a process of its own; use --launcher local"
            )
    gpu_ids = {replica.gpu_ids for service in plan.services for replica in service.replicas} - {()}
    if len(gpu_ids) > 1:
        raise ConfigError(
            "in one process all replicas see the same GPUs, and the plan gives different ones to each; "
            "use --launcher local"
        )
