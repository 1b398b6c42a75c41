"""The commands of `fabric-ppo`, a file for each; `tools/cli.py` lists them."""
