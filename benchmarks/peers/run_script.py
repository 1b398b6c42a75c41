"""A script of another program, named by its path before its flags; every rank prints what it counted.

For programs that are scripts to copy, and no package: Lightning's Fabric PPO example, CleanRL, LeanRL.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import torch.distributed as dist
from counting import count_envpool, count_steps


def main() -> None:
    """Run and print."""
    del sys.argv[0]
    script = Path(sys.argv[0])
    sys.path.insert(0, str(script.parent))  # its modules lie beside it
    os.environ.setdefault("WANDB_MODE", "disabled")  # LeanRL logs there, and nowhere else
    count = count_steps()
    if "envpool" in script.stem:
        count_envpool(count)
    runpy.run_path(sys.argv[0], run_name="__main__")
    count.tell()
    if dist.is_initialized():  # else a process may abort where it ends
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
