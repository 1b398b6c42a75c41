"""The notebooks in `examples/`, executed in an empty folder: no cell fails, and what they say comes true.

What is drawn and printed is of the kinds that are stored, so that a reader sees what is written about.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import yaml

from fabric_ppo import load_run
from tests.fixtures.notebooks import EXAMPLES, execute, kinds, output_of, read


@pytest.fixture
def executed(tmp_path):
    """Execute a notebook in an empty folder; the notebook with its outputs."""

    def run(name):
        stored = read(EXAMPLES / f"{name}.ipynb")
        done = execute(stored, tmp_path)
        assert kinds(done) == kinds(stored)
        return done

    return run


def numbers_of(text):
    return [float(each.replace(",", "")) for each in re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)]


def test_a_first_training(executed, tmp_path):
    done = executed("first_training")
    assert numbers_of(output_of(done, "run"))[1] >= 475
    assert "num_steps" in output_of(done, "names")
    by_chance, trained = numbers_of(output_of(done, "act"))
    assert by_chance < 200 < trained
    upright, falling = numbers_of(output_of(done, "value"))
    assert upright > falling
    assert output_of(done, "resume").endswith("64 updates; same weights: True\n")
    (run_dir,) = (tmp_path / "logs/torch_logs").iterdir()
    assert load_run(run_dir).summary["updates"] == 64
    killed = load_run(tmp_path / "runs/killed")
    assert list(killed.metrics["update"]) == list(range(1, 65))


def test_an_environment_of_ones_own(executed, tmp_path):
    done = executed("own_environment")
    (rule,) = numbers_of(output_of(done, "rule"))
    *_, agents = numbers_of(output_of(done, "evaluate"))
    assert agents < rule - 2
    lines = output_of(done, "train").splitlines()
    assert [numbers_of(line)[0] for line in lines] == [8192 * count for count in range(1, 9)]
    assert numbers_of(lines[-1])[1] >= 90
    assert "is_success" in output_of(done, "shell")
    assert numbers_of(output_of(done, "export"))[-1] == 1000
    (cell,) = (cell for cell in done.cells if cell.id == "agrees")
    (result,) = cell.outputs
    played = output_of(done, "run-play")
    assert played == f"{result.data['text/plain']} steps, landed: True\nloaded: neither torch nor fabric_ppo\n"
    assert (tmp_path / "ferry_onnx_run.py").is_file()


def test_distributed_training(executed, tmp_path):
    done = executed("distributed")
    assert output_of(done, "bits").endswith("equal: True\n")
    metrics = {name: load_run(tmp_path / "runs" / name).metrics for name in ("one", "torch", "decoupled", "apart")}
    losses = {name: columns["Loss/value_loss"] for name, columns in metrics.items()}
    apart = {name: np.abs(losses[name] / losses["one"] - 1)[:2] for name in ("torch", "decoupled", "apart")}
    # rounding may tip an action, but hardly in the first two of 32 updates
    assert max(apart["torch"].max(), apart["decoupled"].max()) < 1e-6
    assert apart["apart"].max() > 1e-3
    # CartPole's agent: two networks with 4 inputs, two layers of 64, and 2 outputs or 1
    weights = 2 * (4 * 64 + 64 + 64 * 64 + 64) + 64 * 2 + 2 + 64 + 1
    gradients, rows = (numbers_of(line) for line in output_of(done, "travel").splitlines())
    assert gradients == [4 * 4, 4 * weights, 4 * 4 * 4 * weights]
    # 512 rows: 4 numbers of an observation, an action of 8 bytes, and 5 numbers
    assert rows == [512 * (4 * 4 + 8 + 5 * 4)]
    sent = [numbers_of(line) for line in output_of(done, "decoupled-travel").splitlines()]
    assert sent == [[1024 * 44], [16 * 4 * weights], [12 * weights]]
    (lag,) = (line for line in output_of(done, "columns").splitlines() if line.startswith("Info/policy_lag"))
    assert numbers_of(lag) == [0, 1]
    idle = [line for line in output_of(done, "columns").splitlines() if "_idle" in line]
    assert all(0 <= share <= 1 for line in idle for share in numbers_of(line))


def test_a_sweep_and_a_report(executed, tmp_path):
    done = executed("sweep_and_report")
    trials = sorted((tmp_path / "runs/sweep/trials").iterdir())
    assert len(trials) == 8
    summaries = [json.loads((each / "seed_1/summary.json").read_text()) for each in trials]
    whole = {
        trial: summary["test"]["return_mean"]
        for trial, summary in zip(trials, summaries, strict=True)
        if summary["ended_by"] != "callback"
    }
    best = yaml.safe_load((tmp_path / "runs/sweep/best.yaml").read_text())
    alike = [each for each in whole if load_run(each / "seed_1").flags["learning_rate"] == best["learning_rate"]]
    assert [whole[each] for each in alike] == [max(whole.values())]
    lines = output_of(done, "new").splitlines()
    assert [line.split()[:3] for line in lines] == [
        [name, "seed", str(seed)] for name in ("start", "best") for seed in (101, 102, 103)
    ]
    runs = {load_run(each).flags["seed"] for each in (tmp_path / "runs/new").iterdir()}
    assert runs == {101, 102, 103}
    for name in ("report.html", "runs/sweep/sweep.html"):
        assert (tmp_path / name).read_text().startswith("<!doctype html>")
