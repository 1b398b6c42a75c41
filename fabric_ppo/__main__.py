"""Entry point of `python -m fabric_ppo` and `fabric-ppo`."""

import sys
from typing import NoReturn

from fabric_ppo.process.hold import hold_signals


def console() -> NoReturn:
    """Run the command line in a process of its own."""
    if sys.argv[1:2] == ["train"]:
        hold_signals()  # until they are handled: the imports take a moment
    from fabric_ppo.tools.cli import console

    console()


if __name__ == "__main__":
    console()
