"""The command `evaluate`: modules of one's own from another folder, and runs that were stopped."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from fabric_ppo.agents.policy import load_agent
from fabric_ppo.api import evaluate as evaluate_in_python
from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.envs.ids import resolve_env_id
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.rollouts import demonstrations
from fabric_ppo.rollouts.demonstrations import read_demonstrations
from fabric_ppo.tools import cli
from fabric_ppo.tools.commands import evaluate
from tests.fixtures.configs import TINY

ENVS = """
import gymnasium
from tests.fixtures.toy_envs import Toy
gymnasium.register("{name}-v0", Toy)
"""
WRAPPERS = "def same(env): return env\n"
ENCODERS = """
import torch

class Own(torch.nn.Module):
    def __init__(self, space):
        super().__init__()
        self.num_features = space.size

    def forward(self, obs):
        return obs.flatten(1)
"""


class Project:
    """A folder with modules of one's own, of names that no other test has, and a run that was trained there."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.envs, self.wraps, self.nets = (f"{name}_{kind}" for kind in ("envs", "wraps", "nets"))
        for module, text in ((self.envs, ENVS.format(name=name)), (self.wraps, WRAPPERS), (self.nets, ENCODERS)):
            (folder / f"{module}.py").write_text(text)

    @property
    def run_dir(self) -> Path:
        return self.folder / "logs" / "run"


@pytest.fixture
def project(request, tmp_path, monkeypatch):
    """Train there; then be in another folder, as a process that has imported nothing of it."""
    of = getattr(request, "param", ("env_id", "env_wrapper"))
    here, elsewhere = tmp_path / "a project", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    made = Project(here, f"p{abs(hash(str(tmp_path)))}")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(here)
    own = {"env_id": f"{made.envs}:{made.name}-v0", "env_wrapper": f"{made.wraps}:same", "encoder": f"{made.nets}:Own"}
    train(Config(**TINY | {name: own[name] for name in of}, run_dir="logs/run"))
    monkeypatch.chdir(elsewhere)
    sys.path.remove(str(here))
    yield made
    forget(made)


def forget(project):
    """Be as a new process, which has imported nothing and looked up nothing."""
    resolve_env_id.cache_clear()
    for module in (project.envs, project.wraps, project.nets):
        sys.modules.pop(module, None)


def evaluated(capsys, *words):
    """The exit status of `evaluate`, its stdout, and the lines of its stderr."""
    capsys.readouterr()
    status = cli.main(["evaluate", *map(str, words), "--episodes", "2", "--json"])
    out, err = capsys.readouterr()
    return status, out, [line for line in err.splitlines() if "Overriding" not in line and "logger.warn" not in line]


def is_imported(project):
    return any(module in sys.modules for module in (project.envs, project.wraps, project.nets))


@pytest.mark.parametrize("words", [[], ["--own-code"]])
@pytest.mark.parametrize("project", [("env_id",), ("env_wrapper",), ("env_id", "env_wrapper")], indirect=True)
def test_a_line_says_where_the_modules_are(project, words, capsys):
    """In a folder above the run's; nothing in it is imported before it is named."""
    forget(project)
    status, out, lines = evaluated(capsys, project.run_dir, *words)
    assert (status, out, len(lines)) == (2, "", 1)
    assert lines[0].startswith(f"error: {project.run_dir}: its environment needs {project.name}_")
    assert f"to be found in {project.folder}: evaluate --code-dir '{project.folder}'" in lines[0]
    assert not is_imported(project)


def test_a_folder_that_is_named_is_looked_in_and_printed(project, capsys):
    forget(project)
    status, out, lines = evaluated(capsys, project.run_dir, "--code-dir", project.folder)
    assert status == 0
    assert len(json.loads(out)["returns"]) == 2
    assert lines == [f"modules of your own are imported from {project.folder}"]
    assert is_imported(project)
    assert Path(sys.modules[project.envs].__file__).parent == project.folder


def test_a_folder_that_is_named_comes_before_the_working_directory(project, tmp_path, capsys, monkeypatch):
    forget(project)
    Path(f"{project.envs}.py").write_text("raise AssertionError('imported from the working directory')")
    monkeypatch.chdir(project.folder.parent)
    monkeypatch.chdir("elsewhere")
    status, _, _ = evaluated(capsys, project.run_dir, "--code-dir", "../a project")
    assert status == 0


def test_a_run_on_another_machine(project, tmp_path, capsys, monkeypatch):
    """Where only the run's folder is: a line says what is missing, and PYTHONPATH or the flag is the way."""
    copied = tmp_path / "copied" / "run"
    shutil.copytree(project.run_dir, copied)
    forget(project)
    status, _, lines = evaluated(capsys, copied, "--own-code")
    modules = f"{project.envs}, {project.wraps}"
    expected = f"its environment needs {modules}, not to be found in {Path.cwd()} or where PYTHONPATH says: "
    expected += "evaluate --code-dir FOLDER, or PYTHONPATH=FOLDER, imports from another folder"
    assert (status, lines) == (2, [f"error: {copied}: {expected}"])
    monkeypatch.syspath_prepend(str(project.folder))  # as PYTHONPATH does
    assert evaluated(capsys, copied, "--own-code")[0] == 0


def test_the_working_directory_needs_no_folder(project, capsys, monkeypatch):
    """As before; and a run that has its modules beside itself is asked for no more than --own-code."""
    forget(project)
    monkeypatch.chdir(project.folder)
    status, _, lines = evaluated(capsys, "logs/run")
    assert (status, len(lines)) == (2, 1)
    assert lines[0].endswith("--own-code imports that")
    assert not is_imported(project)
    status, _, lines = evaluated(capsys, "logs/run", "--own-code")
    assert (status, lines) == (0, [])


@pytest.mark.parametrize("project", [("encoder",)], indirect=True)
def test_an_encoder_of_ones_own(project, capsys, monkeypatch):
    """`load_agent` says the same; where it can be had, it loads."""
    forget(project)
    path = project.run_dir / "policy.safetensors"
    for own_code in (False, True):
        with pytest.raises(ConfigError) as caught:
            load_agent(project.run_dir, own_code=own_code)
        message = str(caught.value)
        assert message.startswith(f"{path}: its encoder needs {project.nets}, to be found in {project.folder}: ")
        assert f"PYTHONPATH='{project.folder}'" in message
    status, _, lines = evaluated(capsys, project.run_dir, "--own-code")
    of_the_command = f"evaluate --code-dir '{project.folder}', or PYTHONPATH='{project.folder}', imports from there"
    assert (status, lines) == (2, [f"error: {message.rpartition('PYTHONPATH')[0]}{of_the_command}"])
    assert not is_imported(project)
    assert evaluated(capsys, project.run_dir, "--code-dir", project.folder)[0] == 0
    monkeypatch.syspath_prepend(str(project.folder))
    assert load_agent(project.run_dir, own_code=True).spec.env_id == "CartPole-v1"


@pytest.mark.parametrize("project", [("env_id", "env_wrapper")], indirect=True)
def test_loading_needs_no_module_of_an_environment(project):
    forget(project)
    assert load_agent(project.run_dir).spec.env_id == f"{project.envs}:{project.name}-v0"
    assert not is_imported(project)


def test_a_folder_that_there_is_not_is_refused(project, capsys):
    for folder in ("nowhere", __file__):
        status, _, lines = evaluated(capsys, project.run_dir, "--code-dir", folder)
        assert (status, lines) == (2, [f"error: --code-dir {folder}: an existing folder is expected"])


def test_a_module_that_fails_is_named(project, capsys):
    """With its own error, which is not that it is missing."""
    forget(project)
    (project.folder / f"{project.envs}.py").write_text("import no_such_package\n")
    status, _, lines = evaluated(capsys, project.run_dir, "--code-dir", project.folder)
    assert status == 2
    assert lines[-1] == f"error: --env-id {project.envs}:{project.name}-v0: No module named 'no_such_package'"


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_stopped_run_is_evaluated_at_its_newest_checkpoint(words, tmp_path, capsys):
    """A line on stderr names it."""
    run_dir = tmp_path / "run"
    train(Config(**TINY | {"keep_checkpoints": 5}, checkpoint_every=1, run_dir=str(run_dir)))
    (run_dir / "policy.safetensors").unlink()
    (run_dir / "summary.json").unlink()
    (run_dir / "checkpoints" / "update_3.ckpt").unlink()
    capsys.readouterr()
    assert cli.main(["evaluate", str(run_dir), "--episodes", "2", *words]) == 0
    out, err = capsys.readouterr()
    assert err == f"{run_dir}: the run has not finished: the policy is that of its newest checkpoint, update_2.ckpt\n"
    assert out.count("\n") == 1
    assert cli.main(["evaluate", str(run_dir / "checkpoints/update_2.ckpt"), "--episodes", "2", *words]) == 0
    again, err = capsys.readouterr()
    assert (again, err) == (out, "")


def test_the_file_of_a_policy_stands_for_its_run(tmp_path, capsys):
    """Also for the place of its video, which is the run's folder."""
    run = train(Config(**TINY, run_dir=tmp_path / "run"), verbose=False)
    printed = []
    for path in (run, run / "policy.safetensors", sorted((run / "checkpoints").glob("*.ckpt"))[-1]):
        assert cli.main(["evaluate", str(path), "--episodes", "2"]) == 0
        printed.append(capsys.readouterr().out)
        assert evaluate.run_folder(Path(path)) == run.run_dir
    assert len(set(printed)) == 1


@pytest.fixture
def tiny_run(tmp_path):
    return train(Config(**TINY, env_id="CartPole-v1", run_dir=tmp_path / "run"), verbose=False).run_dir


def test_episodes_are_recorded_beside_the_same_scores(tiny_run, tmp_path, capsys):
    words = ["evaluate", str(tiny_run), "--episodes", "3", "--json"]
    assert cli.main(words) == 0
    plain = capsys.readouterr().out
    assert cli.main([*words, "--record", str(tmp_path / "a.npz")]) == 0
    assert capsys.readouterr().out == plain
    found = read_demonstrations(tmp_path / "a.npz")
    sums = np.add.reduceat(found.rewards, np.flatnonzero(found.episode_starts))
    assert sums.tolist() == json.loads(plain)["returns"]
    assert cli.main([*words[:-1], "--record", str(tmp_path / "b.npz")]) == 0
    assert f"recorded: {tmp_path / 'b.npz'}" in capsys.readouterr().out
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_record_that_could_not_be_written_is_status_3(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        demonstrations, "write_atomically", mock.Mock(side_effect=OSError(28, "No space left on device"))
    )
    assert cli.main(["evaluate", str(tiny_run), "--episodes", "1", "--record", str(tmp_path / "a.npz")]) == 3
    out, err = capsys.readouterr()
    assert out.startswith("CartPole-v1: return ")
    assert "recorded" not in out
    assert f"warning: {tmp_path}/a.npz (No space left on device) could not be written" in err
    result = evaluate_in_python(tiny_run, 1, record=tmp_path / "a.npz")
    assert result.unwritten == f"{tmp_path}/a.npz (No space left on device)"


@pytest.mark.parametrize("name", ["a.txt", "none/a.npz"])
def test_a_record_of_another_name_is_refused(tiny_run, tmp_path, name):
    with pytest.raises(ConfigError, match=r"record .* is expected"):
        evaluate_in_python(tiny_run, 1, record=tmp_path / name)
    assert cli.main(["evaluate", str(tiny_run), "--episodes", "1", "--record", str(tmp_path / name)]) == 2
    with pytest.raises(ConfigError, match=r"evaluate\(record=3\): a file that ends in \.npz is expected"):
        evaluate_in_python(tiny_run, 1, record=3)
