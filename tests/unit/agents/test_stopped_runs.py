"""The policy of a run that was stopped: its newest whole checkpoint, which a line names."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
import torch

from fabric_ppo.agents.policy import load_agent
from fabric_ppo.agents.policy_file import save_policy, start_from
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import Checkpoint
from fabric_ppo.run.result import load_run
from tests.fixtures.agents import agent_for

OBS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
SPOKEN = "the run has not finished: the policy is that of its newest checkpoint, {}\n"


def write_checkpoint(folder, update, agent):
    """A checkpoint of `agent`, as a run writes it."""
    values = {"env_spec": agent.spec.to_json(), "agent": agent.architecture.to_json(), "update": update}
    weights = {f"weights.{name}": each for name, each in agent.state_dict().items()}
    (folder / "checkpoints").mkdir(exist_ok=True)
    path = folder / "checkpoints" / f"update_{update}.ckpt"
    path.write_bytes(Checkpoint(weights, values).to_bytes())
    return path


@pytest.fixture
def stopped(tmp_path):
    """A run that was stopped after update 10; update 9 is on the disk, too: agents of seeds 10 and 9."""
    for update in (9, 10):
        write_checkpoint(tmp_path, update, agent_for(seed=update))
    return tmp_path


def values_of(seed):
    return agent_for(seed=seed).values(torch.from_numpy(OBS)).detach().numpy()


def test_a_stopped_run_has_the_policy_of_its_newest_checkpoint(stopped, capsys):
    np.testing.assert_allclose(load_agent(stopped).value(OBS), values_of(10), rtol=1e-5)
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"{stopped}: " + SPOKEN.format("update_10.ckpt"))


def test_a_checkpoint_that_is_damaged_is_passed_over(stopped, capsys):
    """And stays as it is: only a run that resumes renames it."""
    newest = stopped / "checkpoints" / "update_10.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1])
    (stopped / "checkpoints" / "update_11.ckpt").mkdir()
    np.testing.assert_allclose(load_agent(stopped).value(OBS), values_of(9), rtol=1e-5)
    assert capsys.readouterr().err == f"{stopped}: " + SPOKEN.format("update_9.ckpt")
    assert newest.exists()


def test_a_finished_run_has_its_own_policy(stopped, capsys):
    save_policy(agent_for(seed=3), stopped)
    np.testing.assert_allclose(load_agent(stopped).value(OBS), values_of(3), rtol=1e-5)
    (stopped / "summary.json").write_text(json.dumps({"updates": 10}))
    np.testing.assert_allclose(load_agent(stopped).value(OBS), values_of(3), rtol=1e-5)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("summary", ['{"updates": 9}', "{", "[]", '{"updates": "many"}', '{"updates": null}'])
def test_a_run_that_went_on_after_its_end_and_was_stopped(stopped, summary, capsys):
    """Its file of the policy is older than its checkpoint; a summary that cannot be read says nothing."""
    save_policy(agent_for(seed=3), stopped)
    (stopped / "summary.json").write_text(summary)
    is_newer = summary == '{"updates": 9}'
    np.testing.assert_allclose(load_agent(stopped).value(OBS), values_of(10 if is_newer else 3), rtol=1e-5)
    assert capsys.readouterr().err.count("\n") == is_newer


def test_a_named_checkpoint_needs_no_line(stopped, capsys):
    np.testing.assert_allclose(load_agent(stopped / "checkpoints/update_9.ckpt").value(OBS), values_of(9), rtol=1e-5)
    assert capsys.readouterr().err == ""


def test_a_training_starts_with_a_stopped_run(stopped, capsys):
    agent = agent_for(seed=1)
    start_from(agent, str(stopped))
    assert all(
        (ours == theirs).all() for ours, theirs in zip(agent.parameters(), agent_for(seed=10).parameters(), strict=True)
    )
    assert capsys.readouterr().err == f"{stopped}: " + SPOKEN.format("update_10.ckpt")


def test_without_a_whole_checkpoint_it_is_refused(stopped):
    for path in (stopped / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no policy.safetensors and no whole checkpoint in it; .* is expected$"):
        load_agent(stopped)


def test_a_folder_of_runs_names_the_newest(tmp_path):
    """The one that was written last, in it or one folder below."""
    for time, name in ((2, "old"), (3, "logs/new"), (1, "oldest")):
        (tmp_path / name).mkdir(parents=True)
        path = tmp_path / name / "policy.safetensors"
        path.touch()
        os.utime(path, (time, time))
    with pytest.raises(ConfigError, match=f"the newest run in it is {re.escape(str(tmp_path / 'logs/new'))}$"):
        load_agent(tmp_path)


def test_a_run_that_has_no_checkpoint_yet_says_when_there_is_one(tmp_path):
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match=r"still trains, its first checkpoint comes after about a minute$"):
        load_agent(tmp_path)


def test_the_file_of_the_policy_is_taken_itself(stopped, capsys):
    """Also where the run has gone on since, and by another name."""
    save_policy(agent_for(seed=3), stopped)
    (stopped / "summary.json").write_text('{"updates": 9}')
    copy = stopped / "a copy.safetensors"
    copy.write_bytes((stopped / "policy.safetensors").read_bytes())
    for path in (stopped / "policy.safetensors", str(copy)):
        np.testing.assert_allclose(load_agent(path).value(OBS), values_of(3), rtol=1e-5)
    agent = agent_for(seed=1)
    start_from(agent, stopped / "policy.safetensors")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["model.zip", "model.pth", "model.safetensors", "other.safetensors", "config.yaml"])
def test_a_file_of_another_program_is_refused(tmp_path, name):
    from safetensors.torch import save

    content = save({"weight": torch.zeros(2)}) if name == "other.safetensors" else b"PK something"
    (tmp_path / name).write_bytes(content)
    said = r"; (the folder of a run is expected|a training writes them into the folder of its run, .*)$"
    with pytest.raises(ConfigError, match=said) as caught:
        load_agent(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize(
    ("metadata", "lacks"),
    [
        (None, "its metadata has no env_spec and no agent"),
        ({"format": "pt"}, "its metadata has no env_spec and no agent"),
        ({"env_spec": "{}"}, "its metadata has no agent"),
        ({"env_spec": "{}", "agent": "{}"}, "its metadata lacks observation"),
    ],
)
def test_what_a_file_of_another_program_lacks_is_named(tmp_path, metadata, lacks):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata)
    written = "a training writes them into the folder of its run, policy.safetensors and checkpoints"
    expected = f"{path}: not a policy of this program ({lacks}); {written}"
    for text, read in (
        (expected, load_agent),
        (f"--init-from {expected}", lambda given: start_from(agent_for(), given)),
    ):
        with pytest.raises(ConfigError) as caught:
            read(path)
        assert str(caught.value) == text


@pytest.mark.parametrize("part", ["checkpoints", "config.yaml", "metrics.jsonl", "failure.txt", "train_videos"])
def test_a_part_of_a_run_is_answered_with_the_run(stopped, part):
    """A file, a folder, or one that it may have."""
    for name in ("config.yaml", "metrics.jsonl"):
        (stopped / name).touch()
    (stopped / "train_videos").mkdir()
    with pytest.raises(ConfigError) as in_agents:
        load_agent(stopped / part)
    with pytest.raises(ConfigError) as in_runs:
        load_run(stopped / part)
    with pytest.raises(ConfigError) as from_it:
        start_from(agent_for(), stopped / part)
    for caught in (in_agents, in_runs, from_it):
        assert str(caught.value).endswith(f"{stopped}?")
        assert "; did you mean " in str(caught.value)
    assert str(from_it.value) == f"--init-from {in_agents.value}"


@pytest.mark.parametrize("name", ["nowhere", "nowhere.zip", "nowhere.safetensors"])
def test_a_path_of_nothing_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"there is no such .*the folder of a run, or a checkpoint, is expected$"):
        load_agent(tmp_path / name)
