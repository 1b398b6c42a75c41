"""`python -m fabric_ppo`."""

import sys

from fabric_ppo.cli import main

if __name__ == "__main__":
    sys.exit(main())
