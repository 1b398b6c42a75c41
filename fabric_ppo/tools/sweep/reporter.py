"""Callback in the runs of a sweep: hands each evaluation to the sweep, and stops where it says so."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from typing import Any

from fabric_ppo.run.callbacks import Callback, RunView

CHANNEL = "FABRIC_PPO_SWEEP"
"""Environment variable with the number of the open socket to the sweep."""
GO_ON, PRUNE = b"+", b"-"
"""Answers of the sweep."""


class Reporter(Callback):
    """Callback that waits for the sweep's answer to each evaluation; without a sweep it does nothing."""

    def on_evaluation(self, run: RunView, result: Mapping[str, Any]) -> bool:
        """Send update and mean return; return True if the sweep prunes the trial."""
        channel = os.environ.get(CHANNEL, "")
        if not channel:
            return False
        report = {"update": run.update, "num_updates": run.num_updates, "return_mean": result["return_mean"]}
        with socket.socket(fileno=os.dup(int(channel))) as connection:
            connection.sendall(f"{json.dumps(report)}\n".encode())
            # empty where the sweep has been killed
            return connection.recv(1) == PRUNE
