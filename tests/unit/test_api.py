"""`train` from Python: what it returns, prints and leaves as it was, and what an interrupt leaves."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from fabric_ppo.agents.policy import load_agent
from fabric_ppo.api import evaluate, train
from fabric_ppo.config import Config
from fabric_ppo.process.errors import ConfigError, EnvironmentFault
from fabric_ppo.rollouts.evaluate import evaluate as play_episodes
from fabric_ppo.run.callbacks import Callback
from fabric_ppo.run.result import RunResult, load_run
from tests.fixtures.configs import TINY
from tests.fixtures.optimizers import use_optimizer

POLICY = "policy.safetensors"


class InterruptAfterTwo(Callback):
    """Ctrl-C, pressed after the second update."""

    def on_update(self, run, metrics):
        if run.update == 2:
            os.kill(os.getpid(), signal.SIGINT)


class InterruptAtStart(Callback):
    """Ctrl-C, pressed before the first update."""

    def on_start(self, run):
        os.kill(os.getpid(), signal.SIGINT)


class Loud(gymnasium.Wrapper):
    """Makes libraries warn, in each step."""

    def step(self, action):
        warnings.warn("a library's warning", UserWarning, stacklevel=1)
        return self.env.step(action)


class Spoiling(gymnasium.Wrapper):
    """Changes PyTorch's settings for itself."""

    def __init__(self, env):
        super().__init__(env)
        spoil()


def spoil():
    """Settings that nobody has by chance."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(3)
    torch.set_deterministic_debug_mode("error")
    torch.set_grad_enabled(False)
    torch.set_default_device("meta")
    torch.autograd.set_detect_anomaly(True, check_nan=False)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = True
    warnings.simplefilter("ignore", BytesWarning)


def settings():
    """All of PyTorch's that a run could change, and the filters of warnings."""
    return {
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "device": torch.get_default_device(),
        "anomaly": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "cudnn": [getattr(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")],
        "precision": torch.get_float32_matmul_precision(),
        "generator": torch.get_rng_state().tolist(),
        "filters": list(warnings.filters),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "SIGINT": signal.getsignal(signal.SIGINT),
    }


@pytest.fixture
def spoilt():
    """A notebook with settings of its own, which has the usual ones again after the test."""
    before = settings()
    with warnings.catch_warnings():
        spoil()
        yield
        torch.set_default_device(None)
        torch.set_default_dtype(before["dtype"])
        torch.set_num_threads(before["threads"])
        torch.set_deterministic_debug_mode(before["deterministic"])
        torch.set_grad_enabled(True)
        torch.autograd.set_detect_anomaly(False)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before["cudnn"][1:]


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    run = train(Config(**TINY, run_dir=tmp_path / "run"))
    with pytest.raises(ConfigError, match="holds a run already"):
        train(Config(**TINY, run_dir=run))


def test_a_notebook_keeps_its_settings_and_gets_the_same_bits(tmp_path, monkeypatch, spoilt):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = settings()
    first = train(Config(**TINY, run_dir=str(tmp_path / "first")))
    assert settings() == before
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    torch.set_deterministic_debug_mode("default")
    with torch.enable_grad():
        before = settings()
        second = train(Config(**TINY, run_dir=str(tmp_path / "second")))
        assert settings() == before
    with torch.inference_mode():
        third = train(Config(**TINY, run_dir=str(tmp_path / "third")))
    assert (first / POLICY).read_bytes() == (second / POLICY).read_bytes() == (third / POLICY).read_bytes()


def test_an_environment_cannot_leave_settings_behind(tmp_path):
    before = settings()
    train(Config(**TINY, env_wrapper=f"{__name__}:Spoiling", run_dir=str(tmp_path / "run")))
    assert settings() == before


def test_settings_come_back_where_the_training_fails(tmp_path, spoilt):
    before = settings()
    with pytest.raises(EnvironmentFault):
        train(Config(**TINY, env_id="tests.fixtures.toy_envs:ToyRaise-v0", run_dir=str(tmp_path / "run")))
    assert settings() == before
    with pytest.raises(ConfigError):
        train(Config(**TINY, env_id="Nothing-v0", log_dir=tmp_path / "none"))
    assert settings() == before
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"env_wrapper": f"{__name__}:Loud"},
        {"total_timesteps": 200, "capture_video": True},
        {"profile": True, "test_step_limit": 3},
        {"env_id": "LunarLander-v2", "num_steps": 40, "total_timesteps": 80},
    ],
    ids=["plain", "warnings", "remainder", "profile", "retired id"],
)
def test_nothing_is_printed_without_verbose(tmp_path, capfd, flags):
    """Neither by Python nor by C, and the weights are the same."""
    silent = train(Config(**TINY | flags, run_dir=tmp_path / "silent"), verbose=False)
    assert capfd.readouterr() == ("", "")
    spoken = train(Config(**TINY | flags, run_dir=tmp_path / "spoken"))
    assert "trained" in capfd.readouterr().out
    assert (silent / POLICY).read_bytes() == (spoken / POLICY).read_bytes()


def test_code_of_the_users_own_prints_without_verbose(tmp_path, capfd):
    train(Config(**TINY, callback="tests.unit.test_api:Speaks", run_dir=tmp_path / "run"), verbose=False)
    assert capfd.readouterr() == ("update 1\nupdate 2\nupdate 3\n", "")


class Speaks(Callback):
    """Prints a line in each update."""

    def on_update(self, run, metrics):
        print("update", run.update)


def test_an_interrupt_prints_a_line_and_leaves_what_goes_on(tmp_path, capfd):
    """To the bits of a run that was left alone."""
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt) as caught:
        train(Config(**TINY, quiet=True, callback=f"{__name__}:InterruptAfterTwo", run_dir=folder))
    said = capfd.readouterr()
    assert said.out == ""
    goes_on = f"from fabric_ppo import Config, train; train(Config(run_dir={str(folder)!r}, resume=True))"
    assert said.err == f"interrupted after update 2; go on with {goes_on}\n"
    assert caught.value.__suppress_context__
    assert len(caught.traceback) == 3
    assert load_agent(folder).act(np.zeros(4, np.float32)) in (0, 1)
    run = load_run(folder)
    assert (run.is_finished, run.summary, run.metrics["update"].tolist()) == (False, {}, [1, 2])
    assert not (folder / "summary.json").exists()
    assert "fail" not in "".join(path.read_text(errors="ignore") for path in folder.iterdir() if path.is_file())
    resumed = train(Config(**TINY, run_dir=folder, resume=True))
    alone = train(Config(**TINY, run_dir=tmp_path / "alone"))
    assert (resumed / POLICY).read_bytes() == (alone / POLICY).read_bytes()
    assert resumed.summary["resumes"] == 1


def test_what_an_interrupted_run_prints_goes_on_when_it_is_pasted(tmp_path, capfd, monkeypatch):
    """In a program that has imported nothing, in another folder, for a folder with any name."""
    folder = tmp_path / 'it\'s a "run" \\n'
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(Config(**TINY, gamma=0.9), callbacks=[InterruptAfterTwo()])
    with_parts = capfd.readouterr().err.splitlines()[-1]
    assert "; go on, giving it callbacks and trackers again, with from fabric_ppo" in with_parts
    with pytest.raises(KeyboardInterrupt):
        train(Config(**TINY, gamma=0.9, callback=f"{__name__}:InterruptAfterTwo", run_dir=folder.name))
    code = capfd.readouterr().err.splitlines()[-1].partition("; go on with ")[2]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    exec(code, {})
    assert load_run(folder).is_finished
    assert load_run(folder).flags["gamma"] == 0.9


def test_what_the_refusal_of_another_flag_prints_begins_a_run_when_it_is_pasted(tmp_path, monkeypatch):
    """Also with a flag that goes back to its default."""
    monkeypatch.chdir(tmp_path)
    train(Config(**TINY, gamma=0.9, run_dir="it's one"))
    (tmp_path / "flags.yaml").write_text("gamma: 0.99\nlearning_rate: 0.5\n")
    again = Config(run_dir="it's one", resume=True, config="flags.yaml", total_timesteps=256)
    with pytest.raises(ConfigError) as caught:
        train(again)
    names: dict[str, object] = {}
    code = str(caught.value).partition("begin a new run: ")[2]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    exec(code.replace("; train", "; run = train"), names)
    run = names["run"]
    assert isinstance(run, RunResult)
    assert run.is_finished
    assert run.run_dir != tmp_path / "it's one"
    flags = [run.flags[name] for name in ("gamma", "learning_rate", "num_steps", "total_timesteps", "init_from")]
    assert flags == [0.99, 0.5, TINY["num_steps"], 256, str(tmp_path / "it's one")]


class OfAnySize(gymnasium.Env[np.ndarray, int]):
    """An environment whose spaces an edit has changed between two runs."""

    size = 3

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(-1, 1, (self.size,))
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(self.size, np.float32), {}

    def step(self, action):
        return np.zeros(self.size, np.float32), 1.0, bool(action), False, {}


def edit_optimizer(monkeypatch):
    use_optimizer(monkeypatch, "AdamW")


def edit_environment(monkeypatch):
    monkeypatch.setattr(OfAnySize, "size", 4)


@pytest.mark.parametrize(("edit", "keeps_policy"), [(edit_optimizer, True), (edit_environment, False)])
def test_the_refusal_of_a_run_from_before_an_edit_begins_another_when_it_is_pasted(
    edit, keeps_policy, tmp_path, monkeypatch
):
    gymnasium.register("OfAnySize-v0", entry_point=f"{__name__}:OfAnySize", max_episode_steps=5)
    monkeypatch.chdir(tmp_path)
    try:
        before = train(Config(**TINY, env_id="OfAnySize-v0", run_dir="before"))
        edit(monkeypatch)
        with pytest.raises(ConfigError, match="does not fit this run") as caught:
            train(Config(run_dir="before", resume=True))
        names: dict[str, RunResult] = {}
        exec(str(caught.value).partition("begin a new run: ")[2].replace("; train", "; run = train"), names)
    finally:
        del gymnasium.registry["OfAnySize-v0"]
    assert names["run"].is_finished
    assert names["run"].flags["init_from"] == (str(before) if keeps_policy else None)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"env_id": "CartPole-v1"}, "train(env_id=...): it is a flag, as in train(Config(env_id=...))"),
        ({"total_timesteps": 9}, "train(total_timesteps=...): it is a flag, as in train(Config(total_timesteps=...))"),
        ({"lr": 9}, "train(lr=...): here it is learning_rate of Config, as in train(Config(...))"),
        ({"callback": Speaks}, "train(callback=...): did you mean callbacks?"),
        ({"progress_bar": True}, "train(progress_bar=...): a live line is shown on a terminal anyway"),
        ({}, "train(): a Config, as in train(Config(env_id='CartPole-v1')), is expected"),
        ({"verbose": False}, "train(): a Config, as in train(Config(env_id='CartPole-v1')), is expected"),
    ],
)
def test_an_argument_that_train_does_not_have_is_answered(arguments, text):
    with pytest.raises(ConfigError) as caught:
        train(**arguments)
    assert str(caught.value).startswith(text)


def test_an_interrupt_before_the_first_update(tmp_path, capfd, monkeypatch):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(Config(**TINY, callback=f"{__name__}:InterruptAtStart", run_dir=folder), verbose=False)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(KeyboardInterrupt):
        train(Config(**TINY, callback=f"{__name__}:InterruptAtStart", run_dir=folder, resume=True))
    *_, said = capfd.readouterr().err.splitlines()
    assert said == "interrupted before the first update was done: there is nothing to go on from"
    monkeypatch.delattr(InterruptAtStart, "on_start")  # a resumed run has its callbacks again
    assert train(Config(**TINY, run_dir=folder, resume=True)).is_finished


def test_paths_are_taken_and_kept_as_text(tmp_path):
    first = train(Config(**TINY, log_dir=tmp_path))
    assert first.run_dir.parent.parent == tmp_path
    second = train(Config(**TINY, run_dir=tmp_path / "second", init_from=first))
    third = train(Config(**TINY, run_dir=str(tmp_path / "third"), init_from=str(first)))
    assert (second / POLICY).read_bytes() == (third / POLICY).read_bytes()
    assert f"init_from: {first}\n" in (second / "config.yaml").read_text()
    assert (second / "config.yaml").read_bytes() == (third / "config.yaml").read_bytes()
    assert Config(run_dir=Path("a")).to_dict() == Config(run_dir="a").to_dict()


@pytest.mark.parametrize("name", ["run_dir", "log_dir", "init_from", "config"])
@pytest.mark.parametrize("value", [3, b"bytes", ["list"], Path("a\0b")])
def test_what_is_no_path_is_refused(name, value):
    with pytest.raises(ConfigError, match=rf"^--{name.replace('_', '-')} .*is expected"):
        train(Config(**TINY, **{name: value}))


def test_flags_of_a_file(tmp_path):
    """Those that differ from their defaults override it, as on the command line."""
    file = tmp_path / "flags.yaml"
    file.write_text("learning_rate: 3e-4\nseed: 7\nnum_steps: 999\n")
    run = train(Config(**TINY, config=file, run_dir=tmp_path / "run"))
    other = train(Config(**TINY, learning_rate=3e-4, seed=7, run_dir=tmp_path / "other"))
    assert (run / "config.yaml").read_bytes() == (other / "config.yaml").read_bytes()


def test_the_result_is_a_run(tmp_path):
    run = train(Config(**TINY, run_dir=tmp_path / "run"))
    assert isinstance(run, RunResult)
    assert os.fspath(run) == str(run) == str(tmp_path / "run")
    obs = np.zeros((3, 4), np.float32)
    np.testing.assert_array_equal(run.agent.value(obs), load_agent(run).value(obs))


def test_evaluate_takes_an_agent_a_folder_or_a_run(tmp_path):
    """And plays the same episodes with each, which are those of `evaluate` on the command line."""
    run = train(Config(**TINY, run_dir=tmp_path / "run"), verbose=False)
    checkpoint = sorted((run / "checkpoints").glob("*.ckpt"))[-1]
    given = [run, load_run(run), run.agent, run.run_dir, str(run), checkpoint]
    results = [evaluate(each, episodes=3, seed=5) for each in given]
    assert len({tuple(result.returns) for result in results}) == 1
    assert results[0] == play_episodes(run.agent, 3, 5)
    assert evaluate(run, np.int64(3), 5.0) == results[0]
    mean, std = np.mean(results[0].returns), np.std(results[0].returns)
    assert repr(results[0]) == f"TestResult(return_mean={mean:.6g}, return_std={std:.6g}, episodes=3)"
    assert "cut_off=3" in repr(evaluate(run, 3, step_limit=2))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "evaluate(): an agent or the folder of a run, as in evaluate('RUN_DIR'), is expected"),
        ({"policy": 3}, "evaluate(3): an agent or the folder of a run, as in evaluate('RUN_DIR'), is expected"),
        ({"policy": Config}, "evaluate(Config (class)): an agent or the folder of a run"),
        ({"policy": "nowhere"}, "nowhere: "),
        ({"policy": "x", "n_eval_episodes": 3}, "evaluate(n_eval_episodes=...): here it is episodes"),
        (
            {"policy": "x", "deterministic": False},
            "evaluate(deterministic=...): actions are the most probable ones anyway; stochastic=True samples them",
        ),
        ({"policy": "x", "env": 3}, "evaluate(env=...): environment and agent are those of the run"),
        ({"policy": "x", "learning_rate": 3}, "evaluate(learning_rate=...): it is a flag of train"),
        ({"policy": "x", "qqqq": 3}, "evaluate(qqqq=...): see help(fabric_ppo.evaluate)"),
        ({"policy": "x", "episode": 3}, "evaluate(episode=...): did you mean episodes?"),
        ({"policy": "x", "episodes": 0}, "evaluate(episodes=0): a whole number from 1 up is expected"),
        ({"policy": "x", "episodes": "3"}, "evaluate(episodes='3' (str)): a whole number from 1 up is expected"),
        ({"policy": "x", "seed": -1}, "evaluate(seed=-1): a whole number from 0 to 4294967295 is expected"),
        ({"policy": "x", "step_limit": 0}, "evaluate(step_limit=0): a whole number from 1 up is expected"),
    ],
    ids=str,
)
def test_what_evaluate_cannot_take_is_answered_in_a_line(arguments, text):
    with pytest.raises(ConfigError) as caught:
        evaluate(**arguments)
    assert str(caught.value).startswith(text)


def test_an_environment_for_episodes_is_answered():
    """As Stable-Baselines3's `evaluate_policy` has it in this place."""
    with pytest.raises(ConfigError, match="the agent has an environment made for itself"):
        evaluate("x", gymnasium.make("CartPole-v1"))


def test_evaluate_imports_modules_of_a_runs_files_only_if_it_may(tmp_path):
    run = train(Config(**TINY, env_wrapper=f"{__name__}:same", run_dir=tmp_path / "run"), verbose=False)
    with pytest.raises(ConfigError, match="own_code=True"):
        evaluate(str(run), 1)
    assert evaluate(run, 1) == evaluate(str(run), 1, own_code=True)


def same(env):
    """Change nothing."""
    return env
