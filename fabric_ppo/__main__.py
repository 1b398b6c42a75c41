"""Entry point of `python -m fabric_ppo`."""

from fabric_ppo.tools.cli import console

if __name__ == "__main__":
    console()
