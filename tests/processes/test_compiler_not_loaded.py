"""PyTorch's compiler is loaded by nobody who did not ask for it."""

from __future__ import annotations

import subprocess
import sys

from tests.fixtures.launching import ROOT


def test_the_compiler_is_not_loaded():
    """PyTorch loads it for its optimizers and for `use_deterministic_algorithms`: seconds and 70 MB for nothing."""
    program = """
import sys, torch
from fabric_ppo.config import Config
from fabric_ppo.fast.adam import LeanAdam
from fabric_ppo.process.group import ALONE
from fabric_ppo.run.prepare import prepare_process
prepare_process(Config(), ALONE)
assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
parameter = torch.nn.Parameter(torch.ones(3))
optimizer = LeanAdam([parameter], lr=0.1, eps=1e-5)
parameter.sum().backward()
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
optimizer.zero_grad()
print([name for name in sys.modules if name in ("torch._dynamo", "torch._inductor.config")])
"""
    args = [sys.executable, "-c", program]
    done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
