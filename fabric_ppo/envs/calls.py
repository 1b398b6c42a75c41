"""Calls of environments that step as batches, whose errors become faults in one line and a trace."""

from __future__ import annotations

import sys
import traceback
from typing import Any

from fabric_ppo.process.console import print_line
from fabric_ppo.process.errors import EnvironmentFault, describe_error
from fabric_ppo.process.signals import pass_on_stop


def call(place: str, env: Any, method: str, *args: Any, **options: Any) -> Any:
    """Call a method of an environment; raise an EnvironmentFault that names `place` if it fails."""
    try:
        return getattr(env, method)(*args, **options)
    except BaseException as error:
        pass_on_stop(error)
        trace = "".join(traceback.format_exception(error)).rstrip()
        raise EnvironmentFault(f"{place}: {method} raised {describe_error(error)}\n{trace}") from error


def close(env: Any, place: str) -> None:
    """Close environments, where they can be; an error there costs a warning."""
    try:
        if hasattr(env, "close"):
            env.close()
    except BaseException as error:
        pass_on_stop(error)
        print_line(f"warning: {place}: close raised {describe_error(error)}".splitlines()[0], sys.stderr)
