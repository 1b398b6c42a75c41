"""`--resume` with a mistyped folder: the run that was meant is named, and no run of default flags begins."""

from __future__ import annotations

import os

import pytest

from fabric_ppo.api import train
from fabric_ppo.config import SCRIPT_CONFIGS, Config, TorchConfig
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.run.folder import make_folder
from fabric_ppo.run.near_runs import nearest_run
from fabric_ppo.tools import cli
from fabric_ppo.tools.flags import parse_flags
from tests.fixtures.configs import TINY

pytestmark = pytest.mark.usefixtures("no_launcher")

RUNS = ("runs/cartpole", "runs/pendulum", "logs/torch_logs/2026-11-27_10-00-00_CartPole-v1_default_7")
MEANT = {
    "a letter": ("runs/cartpol", RUNS[0]),
    "capitals": ("runs/CartPole", RUNS[0]),
    "letters that changed places": ("runs/penduulm/", RUNS[1]),
    "the folder above": ("rnus/cartpole", RUNS[0]),
    "both": ("rnus/cartpol", RUNS[0]),
    "a folder that is missing": ("cartpole", None),
    "no folder of logs": ("2026-11-27_10-00-00_CartPole-v1_default_7", RUNS[2]),
    "the time": ("logs/torch_logs/2026-11-27_10-00-01_CartPole-v1_default_7", RUNS[2]),
    "the script": ("logs/fabric_logs/2026-11-27_10-00-00_CartPole-v1_default_7", RUNS[2]),
    "nothing like it": ("runs/x", None),
}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A working directory with runs that have begun."""
    monkeypatch.chdir(tmp_path)
    for name in RUNS:
        make_folder(tmp_path / name, TorchConfig(gamma=0.5))
    (tmp_path / "runs/cartpole/checkpoints").mkdir()
    (tmp_path / "runs/cartpole/checkpoints/update_3.ckpt").touch()
    return tmp_path


def everything(folder):
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize(("typed", "meant"), MEANT.values(), ids=MEANT)
def test_the_run_that_was_meant_is_found(typed, meant, runs):
    found = nearest_run(runs / typed, "logs")
    assert (found and os.path.relpath(found, runs)) == meant


@pytest.mark.parametrize("more", [[], ["--quiet"], ["--log-dir", "logs"], ["--devices", "2"]])
@pytest.mark.parametrize(("typed", "meant"), MEANT.values(), ids=MEANT)
def test_no_run_of_default_flags_begins(typed, meant, more, runs, capsys):
    before = everything(runs)
    assert cli.main(["train", "torch", "--run-dir", typed, "--resume", *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"error: --resume --run-dir {typed}: there is no such folder, and no flag says what to train"
    )
    assert line.endswith(f"did you mean {meant and runs / meant}?") == (meant is not None)
    assert ("such as --env-id" in line) == (meant is None)
    assert everything(runs) == before


@pytest.mark.parametrize("kind", SCRIPT_CONFIGS.values())
@pytest.mark.parametrize(
    "more", [["--env-id", "CartPole-v1"], ["--config", "cartpole"], ["--seed=3"], ["--no-anneal-lr"]]
)
def test_a_job_that_gives_its_flags_each_time_begins(kind, more, runs):
    assert parse_flags(kind, ["--run-dir", "runs/cartpol", "--resume", *more]).run_dir == "runs/cartpol"


@pytest.mark.parametrize("words", [["--help"], ["--help-all"]])
def test_the_help_is_printed_anyway(words, runs):
    with pytest.raises(SystemExit, match="0"):
        parse_flags(TorchConfig, ["--run-dir", "runs/cartpol", "--resume", *words])


def test_a_file_counts_for_what_it_holds(runs):
    (runs / "place.yaml").write_text("run_dir: runs/cartpol\nresume: true\nquiet: true\n")
    with pytest.raises(ConfigError, match=r"did you mean .*runs/cartpole"):
        parse_flags(TorchConfig, ["--config", "place.yaml"])
    (runs / "all.yaml").write_text("run_dir: runs/cartpol\nresume: true\nenv_id: CartPole-v1\n")
    assert parse_flags(TorchConfig, ["--config", "all.yaml"]).env_id == "CartPole-v1"


@pytest.mark.parametrize("part", ["checkpoints", "checkpoints/update_3.ckpt", "checkpoints/best.ckpt", "config.yaml"])
@pytest.mark.parametrize("more", [[], ["--env-id", "CartPole-v1"]])
def test_a_part_of_a_run_is_answered_with_the_run(part, more, runs):
    with pytest.raises(ConfigError, match=f"is a part of a run; did you mean {runs / RUNS[0]}\\?$"):
        parse_flags(TorchConfig, ["--run-dir", f"runs/cartpole/{part}", "--resume", *more])


@pytest.mark.parametrize(
    ("folder", "text"),
    [("runs", "holds no run, but others below it; one, as runs/"), ("empty", "holds no run, and no flag says what")],
)
def test_a_folder_that_is_there_is_described(folder, text, runs):
    (runs / "empty").mkdir()
    with pytest.raises(ConfigError, match=text):
        parse_flags(TorchConfig, ["--run-dir", folder, "--resume"])


def test_from_python_alike(runs):
    before = everything(runs)
    for more in ({}, {"quiet": True}):
        with pytest.raises(ConfigError, match=f"did you mean {runs / RUNS[0]}\\?$"):
            train(Config(run_dir="runs/cartpol", resume=True, **more))
    assert everything(runs) == before


@pytest.mark.parametrize(("typed", "is_asked"), [("runs/cartpol", True), ("runs/job_2", False), ("runs/x", False)])
def test_a_run_that_begins_anyway_asks_for_the_one_that_was_meant(typed, is_asked, runs, capfd):
    """Not for those of other jobs of the same array."""
    make_folder(runs / "runs/job_1", TorchConfig())
    train(Config(**TINY, run_dir=typed, resume=True))
    (line,) = [each for each in capfd.readouterr().err.splitlines() if each.startswith("nothing to go on from")]
    assert line.endswith(f"a new run begins; did you mean {runs / RUNS[0]}?" if is_asked else "a new run begins")


def test_a_folder_whose_run_was_killed_before_its_first_checkpoint_is_the_one_that_was_meant(runs, capfd):
    make_folder(runs / "runs/cartpol", TorchConfig(**TINY))
    train(Config(run_dir="runs/cartpol", resume=True))
    (line,) = [each for each in capfd.readouterr().err.splitlines() if each.startswith("nothing to go on from")]
    assert line.endswith("a new run begins")
