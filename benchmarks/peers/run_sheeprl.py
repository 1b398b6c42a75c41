"""`sheeprl`, with its own command line; every rank prints what it counted."""

from __future__ import annotations

from counting import count_steps
from sheeprl.cli import run


def main() -> None:
    """Run and print."""
    count = count_steps()
    run()
    count.tell()


if __name__ == "__main__":
    main()
