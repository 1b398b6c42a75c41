"""Flags of the scripts in this folder that train by a program's interface for Python."""

from __future__ import annotations

import argparse
from pathlib import Path

WHOLE = ("total-timesteps", "num-envs", "num-steps", "batch-size", "epochs", "seed")
REAL = ("learning-rate", "gamma", "gae-lambda", "ent-coef", "clip-coef")


def parse_args(description: str | None) -> argparse.Namespace:
    """Everything that a task names."""
    parser = argparse.ArgumentParser(description=description)
    for names, kind in ((WHOLE, int), (REAL, float)):
        for name in names:
            parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--env-id", required=True)
    parser.add_argument("--log-dir", type=Path, default=Path())
    parser.add_argument("--normalize", action="store_true", help="observations and rewards")
    parser.add_argument("--stop-at-return", type=float, default=float("inf"))
    return parser.parse_args()
