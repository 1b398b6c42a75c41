"""A run's order, which has a shape: RunSetup, then Run, update after update; and what is closed, however it ends."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import TorchConfig
from fabric_ppo.envs.make import make_envs
from fabric_ppo.fast.compiled_actor import ActorChoice
from fabric_ppo.fast.loss_module import PPOLoss, make_optimizer
from fabric_ppo.ppo.update import UpdateStats
from fabric_ppo.process.errors import ConfigError, NotAllWrittenError, TrainingError
from fabric_ppo.process.group import ALONE, Ranks
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.rollouts.collect import collect
from fabric_ppo.run import run as run_module
from fabric_ppo.run import setup as module
from fabric_ppo.run.run import Run
from fabric_ppo.run.setup import RunSetup
from tests.fixtures.configs import tiny
from tests.fixtures.launching import printed_in_fork
from tests.fixtures.parts import outcome
from tests.fixtures.ranks import on_ranks
from tests.fixtures.toy_envs import toy_env

pytestmark = pytest.mark.usefixtures("no_launcher")


STATS = UpdateStats(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1, *(1.0,) * 5, seconds=1.0)


@pytest.fixture(autouse=True)
def determinism():
    yield
    torch.use_deterministic_algorithms(False)


def tiny_config(**flags) -> TorchConfig:
    return TorchConfig(**tiny(**flags), quiet=True)


def started(setup: RunSetup, config: TorchConfig):
    """A run that has been set up as a script does it, and a function that collects the rollout of an update."""
    envs = setup.closing(make_envs(config, 0, 1, setup.video_dir))
    agent = make_agent(envs.spec, config)
    buffer = RolloutBuffer(envs, agent, config.num_steps, ActorChoice(agent))
    run = setup.start(agent, make_optimizer(PPOLoss(agent, config), config), buffer)
    return run, lambda update: collect(agent, buffer, config.seed, update)


def test_a_run_is_had_from_its_setup_only(tmp_path):
    """What belongs to updates is not there before `start`, and what belongs to the setup not after it."""
    of_run = {"updates", "merge", "is_last", "finish_update", "finish", "num_updates", "first_update", "in_flight"}
    of_setup = {"closing", "start", "dir", "video_dir"}
    config = tiny_config()
    with pytest.raises(TypeError):
        Run(config, ALONE)
    with RunSetup(config, ALONE, tmp_path / "run") as setup:
        assert all(hasattr(setup, name) for name in of_setup)
        assert not any(hasattr(setup, name) for name in of_run)
        run, _ = started(setup, config)
        assert type(run) is Run
        assert all(hasattr(run, name) for name in of_run)
        assert not any(hasattr(run, name) for name in of_setup)


def whole(run_dir, ends: int) -> None:
    """A run that calls `finish_update` so many times in each update."""
    config = tiny_config()
    with RunSetup(config, ALONE, run_dir) as setup:
        run, rollout_of = started(setup, config)
        for update in run.updates():
            assert update == 0, "the next one does not begin"
            result = run.merge(rollout_of(update), STATS)
            for _ in range(ends):
                run.finish_update(result, 0.1)


@pytest.mark.parametrize("ends", [0, 2])
def test_each_update_ends_with_finish_update_once(tmp_path, ends):
    with pytest.raises(AssertionError, match="each update ends with finish_update"):
        whole(tmp_path / "run", ends)


def test_a_run_in_order(tmp_path):
    config = tiny_config()
    with RunSetup(config, ALONE, tmp_path / "run") as setup:
        run, rollout_of = started(setup, config)
        seen = []
        for update in run.updates():
            result = run.merge(rollout_of(update), STATS)
            seen.append((update, run.is_last(result)))
            run.finish_update(result, 0.1)
        done = run.finish()
    assert (run.first_update, run.num_updates) == (0, 3)
    assert seen == [(0, False), (1, False), (2, True)]
    assert (done.updates, done.env_steps) == (3, config.total_timesteps)


class Resource:
    def __init__(self, name, closed, error=None):
        self.name, self.closed, self.error = name, closed, error

    def close(self):
        self.closed.append(self.name)
        if self.error is not None:
            raise self.error


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def three_resources(run_dir, error=None):
    """What has been closed, and a run that has three resources, cannot write the second, and fails with `error`."""
    closed = []

    def work():
        with RunSetup(tiny_config(), ALONE, run_dir) as setup:
            for name, its_error in (("first", None), ("second", NO_SPACE), ("third", None)):
                setup.closing(Resource(name, closed, its_error))
            if error is not None:
                raise error

    return closed, work


def test_what_could_not_be_written_is_named_at_the_end_once_all_is_closed(tmp_path):
    closed, work = three_resources(tmp_path / "run")
    with pytest.raises(NotAllWrittenError, match=r"^done, but not everything could be written: .*No space left"):
        work()
    assert closed == ["third", "second", "first"]


def test_a_failure_is_worse_than_what_could_not_be_written(tmp_path):
    closed, work = three_resources(tmp_path / "run", TrainingError("told to fail"))
    with pytest.raises(TrainingError, match="told to fail"):
        work()
    assert closed == ["third", "second", "first"]


def test_a_run_that_cannot_start_leaves_no_folder(tmp_path):
    config, run_dir = tiny_config(init_from=str(tmp_path / "nowhere")), tmp_path / "run"
    with pytest.raises(ConfigError, match="nowhere"), RunSetup(config, ALONE, run_dir) as setup:
        started(setup, config)
    assert not run_dir.exists()


def test_videos_of_a_run_that_cannot_start_leave_no_folder(tmp_path):
    """The first environment, which is recorded, can be made; the policy to start from cannot be found."""
    flags = {"env_id": toy_env(), "capture_video": True, "init_from": str(tmp_path / "nowhere")}
    run_dir = tmp_path / "logs/torch_logs/run"
    with pytest.raises(ConfigError, match="nowhere"), RunSetup(tiny_config(**flags), ALONE, run_dir) as setup:
        started(setup, tiny_config(**flags))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_before_stays(tmp_path):
    flags = {"env_id": toy_env(), "capture_video": True, "init_from": str(tmp_path / "nowhere")}
    (tmp_path / "run").mkdir()
    with pytest.raises(ConfigError, match="nowhere"), RunSetup(tiny_config(**flags), ALONE, tmp_path / "run") as setup:
        started(setup, tiny_config(**flags))
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]
    assert list((tmp_path / "run").iterdir()) == []


def test_rank_0_names_the_folder_unless_a_flag_does(monkeypatch):
    """Ranks that start in different seconds name different ones."""
    monkeypatch.setattr(module, "prepare_process", lambda *_: None)

    def folder(config):
        def of(ranks: Ranks):
            return RunSetup(config, ranks, Path(f"/logs/run of rank {ranks.rank} ä")).dir

        return on_ranks(3, of)

    assert folder(TorchConfig()) == [Path("/logs/run of rank 0 ä")] * 3
    assert folder(TorchConfig(run_dir="x")) == [Path(f"/logs/run of rank {rank} ä") for rank in range(3)]


@pytest.mark.parametrize(
    ("flags", "records"), [({}, False), ({"capture_video": True}, True), ({"env_backend": "async"}, False)]
)
def test_where_videos_of_the_training_go(tmp_path, flags, records):
    with RunSetup(tiny_config(**flags), ALONE, tmp_path / "run") as setup:
        assert setup.video_dir == (f"{tmp_path}/run/train_videos" if records else "")


def test_envpools_environments_cannot_be_recorded(tmp_path):
    with RunSetup(tiny_config(env_backend="envpool", capture_video=True), ALONE, tmp_path / "run") as setup:
        assert setup.video_dir == ""


def whole_runs(run_dir, flags) -> list[str]:
    """A run, and its continuation."""
    more = {"resume": True, "eval_every": 2, **flags}
    return [outcome(run_dir, 3, {"eval_every": 2, **flags}), outcome(run_dir, 5, more)]


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_quiet_prints_nothing(tmp_path, backend):
    """For a whole run with everything that it may have, and for one that is resumed."""
    flags = {"quiet": True, "capture_video": True, "checkpoint_every": 1, "env_backend": backend}
    assert printed_in_fork(whole_runs, tmp_path / "run", flags) == (["", ""], "", "")


def test_without_quiet_it_prints(tmp_path):
    """So that the test above would see it."""
    ended, out, err = printed_in_fork(whole_runs, tmp_path / "run", {"quiet": False})
    assert ended == ["", ""]
    assert out.count("\ntested  return ") == 2
    schedule, resumed = err.splitlines()
    assert schedule.startswith("--total-timesteps 160, before 96: now --learning-rate falls to zero")
    assert resumed == "resumed after update 3 of 5"
    begun = [line for line in out.splitlines() if line.startswith("updates ")]
    assert [line.split("), ")[1:] for line in begun] == [[], ["begins after update 3"]]


def test_quiet_still_prints_what_went_wrong(tmp_path, monkeypatch):
    def save_policy(*_):
        raise NO_SPACE

    monkeypatch.setattr(run_module, "save_policy", save_policy)
    ended, out, err = printed_in_fork(outcome, tmp_path / "run", 3, {"quiet": True})
    assert ended.startswith("NotAllWrittenError: done, but not everything could be written: policy.safetensors (")
    assert out == ""
    assert err.startswith("warning: policy.safetensors could not be written (")
    assert err.count("\n") == 1


@pytest.mark.parametrize("quiet", [False, True])
def test_a_rounded_total_is_no_warning(tmp_path, no_launcher, quiet):
    ended, out, err = printed_in_fork(outcome, tmp_path / "run", 2, {"total_timesteps": 70, "quiet": quiet})
    assert ended == ""
    assert ("--total-timesteps 70 is rounded down to 64" in err) == (not quiet)
    assert bool(out) == (not quiet)
