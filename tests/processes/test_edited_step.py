"""A step that no longer returns the gradient's norm, as after another clipping: one line, and status 2."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fixtures.copies import NAMES, copy_of_the_repository
from tests.fixtures.launching import clean_environment
from tests.fixtures.processes import PATIENCE

pytestmark = pytest.mark.processes

FLAGS = ("--total-timesteps=512", "--num-steps=64", "--num-threads=1", "--quiet", "--run-dir=run")
CHANGES = {
    "None": ("norm = clip_gradient()", "norm = torch.nn.utils.clip_grad_value_(agent.parameters(), 0.5)"),
    "0.5": ("return norm", "return 0.5"),
}


@pytest.mark.parametrize(
    ("script", "devices", "returned"),
    [("torch", 1, "None"), ("torch", 2, "0.5"), ("fabric", 1, "0.5"), ("decoupled", 2, "None")],
)
def test_it_is_one_line(script, devices, returned, tmp_path):
    copy = copy_of_the_repository(tmp_path / "copy")
    path, (old, new) = copy / NAMES[script], CHANGES[returned]
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    words = [sys.executable, "-m", "fabric_ppo", "train", script, f"--devices={devices}", *FLAGS]
    env = clean_environment(PYTHONPATH=str(copy), OMP_NUM_THREADS="1")
    done = subprocess.run(words, cwd=copy, env=env, capture_output=True, text=True, timeout=PATIENCE)
    text = f"step of {NAMES[script]} returned {returned}: the gradient's norm, a scalar tensor, is expected, "
    (line,) = (each for each in done.stderr.splitlines() if text in each)
    assert line.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert done.returncode == 2, done.stderr
