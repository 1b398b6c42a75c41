"""A script of Lightning's Fabric PPO example, named by its path before its flags; every rank prints what it counted."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import torch.distributed as dist
from counting import count_steps


def main() -> None:
    """Run and print."""
    del sys.argv[0]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))  # its modules lie beside it
    count = count_steps()
    runpy.run_path(sys.argv[0], run_name="__main__")
    count.tell()
    if dist.is_initialized():  # else a process may abort where it ends
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
