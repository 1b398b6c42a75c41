"""A copy of a script in a folder of one's own: it is what runs, and what the help and `--resume` name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.configs import TINY
from tests.fixtures.launching import BIN, ROOT, clean_environment
from tests.fixtures.processes import PATIENCE

FLAGS = [word for name, value in TINY.items() for word in ("--" + name.replace("_", "-"), str(value))]
CHANGED = "resumed with changed code"
PYTHON, TORCHRUN = [sys.executable], [str(BIN / "torchrun"), "--standalone", "--nproc_per_node=2"]


def started(words: list[str], folder: Path) -> str:
    """What a command prints."""
    env = clean_environment(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "launcher"), [("train_torch.py", PYTHON), ("my_ppo.py", PYTHON), ("my_ppo.py", TORCHRUN)]
)
def test_an_edit_of_a_copy_is_named_where_the_run_goes_on(name, launcher, tmp_path):
    copy = tmp_path / name
    copy.write_text((ROOT / "train_torch.py").read_text())
    started([*launcher, name, *FLAGS, "--run-dir=run"], tmp_path)
    more = ["--run-dir=run", "--resume", "--total-timesteps"]
    assert CHANGED not in started([*launcher, name, *more, "1024"], tmp_path)
    copy.write_text(copy.read_text() + "\n# an edit\n")
    assert f"{CHANGED} (train_torch.py): " in started([*launcher, name, *more, "2048"], tmp_path)
    assert f"{CHANGED} (train_torch.py): " in started(
        [*launcher, str(ROOT / "train_torch.py"), *more, "4096"], tmp_path
    )


def test_the_help_of_a_copy_has_its_name(tmp_path):
    copy = tmp_path / "own" / "my ppo.py"
    copy.parent.mkdir()
    copy.write_text((ROOT / "train_fabric.py").read_text())
    printed = started([sys.executable, "own/my ppo.py", "--help"], tmp_path)
    assert printed.startswith("usage: python 'own/my ppo.py' [FLAGS]\n")
