"""Entry point of `python -m fabric_ppo`."""

import sys

from fabric_ppo.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
