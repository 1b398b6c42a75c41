"""Entry point of `python -m fabric_ppo` and `fabric-ppo`."""

import sys
from typing import NoReturn

from fabric_ppo.process.extras import missing_package, name_missing_packages
from fabric_ppo.process.hold import hold_signals


def console() -> NoReturn:
    """Run the command line in a process of its own."""
    name_missing_packages()
    if sys.argv[1:2] == ["train"]:
        hold_signals()  # until they are handled: the imports take a moment
    try:
        from fabric_ppo.tools.cli import console
    except Exception as error:
        sys.exit(_without_packages(error))
    console()


def _without_packages(error: Exception) -> int:
    """Run `doctor`, which needs no package, where the command line cannot be imported; return the exit status."""
    from fabric_ppo.process.console import print_line
    from fabric_ppo.process.errors import FAILED, describe_error, reason_line
    from fabric_ppo.tools.commands import doctor

    if sys.argv[1:2] == ["doctor"]:
        return doctor.run(sys.argv[2:])
    why = missing_package(error) or f"{reason_line(describe_error(error))}; fabric-ppo doctor lists what is missing"
    print_line(f"error: {why}", sys.stderr)
    return FAILED


if __name__ == "__main__":
    console()
