"""An agent of other code than the program's: lines where it trains, and where it is loaded without that code."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fabric_ppo.agents.policy import load_agent
from tests.fixtures.copies import copy_of_the_repository, train_in
from tests.fixtures.launching import clean_environment, command
from tests.fixtures.processes import PATIENCE

QUICK = ("--total-timesteps=512", "--test-episodes=1", "--num-threads=1", "--quiet")


def edited(folder, old, new):
    """A copy in which `agents/mlp.py` says something else."""
    copy = copy_of_the_repository(folder / "copy")
    path = copy / "fabric_ppo/agents/mlp.py"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    return copy


def evaluate(copy, run_dir):
    """What `evaluate` says on stderr, with the code of a folder."""
    words = [sys.executable, "-m", "fabric_ppo", "evaluate", str(run_dir), "--episodes", "1"]
    env = clean_environment(PYTHONPATH=str(copy))
    done = subprocess.run(words, cwd=copy, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_another_activation(tmp_path, capsys):
    copy = edited(tmp_path, '"relu": nn.ReLU,', '"relu": nn.SiLU,')
    run_dir = copy / "run"
    flags = ("--activation-function=relu", f"--run-dir={run_dir}")
    said = train_in(copy, "torch", 0, *QUICK, *flags).stderr.splitlines()
    assert sorted(line.partition(" follows")[0] for line in said if "follows" in line) == [
        f"edited: agents/mlp.py; changed: SiLU; {what}" for what in ("acting", "training")
    ]
    assert "trained with other code" not in evaluate(copy, run_dir)
    expected = "trained with other code (fabric_ppo/agents/mlp.py): with the code that is here it may act otherwise"
    (checkpoint,) = run_dir.glob("checkpoints/*[0-9].ckpt")
    for path in (run_dir, checkpoint):
        load_agent(path)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(str(path))
        assert line.endswith(expected)
    plain = copy_of_the_repository(tmp_path / "plain")
    assert evaluate(plain, run_dir).count(expected) == 1
    begun = train_in(plain, "torch", 0, *QUICK, f"--init-from={run_dir}", *flags[:1], "--run-dir=other")
    assert begun.stderr.count(expected) == 1
    assert "trained with other code" not in evaluate(plain, plain / "other")


@pytest.mark.parametrize("script", ["torch", "fabric", "decoupled"])
def test_dropout_is_refused(tmp_path, script):
    copy = edited(tmp_path, "module()]\n", "module(), nn.Dropout(0.1)]\n")
    size = 2 if script == "decoupled" else 0
    words = command(
        script, size, *QUICK, "--run-dir=run", path=str(copy / f"train_{'fabric_decoupled' if size else script}.py")
    )
    env = clean_environment(PYTHONPATH=str(copy))
    done = subprocess.run(words, cwd=copy, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == (1 if size else 2)
    assert (
        done.stderr.count("error: the agent's Dropout makes of an observation what depends on others, on chance, ") == 1
    )
    assert not (copy / "run").exists()
