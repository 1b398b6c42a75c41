"""From Python: `train`, starting from a trained policy, and environments wrapped by name."""

import sys
import time

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from fabric_ppo import Config, ConfigError, load_agent, train
from fabric_ppo.agents.make import make_agent
from fabric_ppo.agents.policy_file import start_from
from fabric_ppo.envs.spaces import env_spec
from fabric_ppo.process import signals
from fabric_ppo.process.errors import EnvironmentFault
from fabric_ppo.rollouts.evaluate import evaluate
from tests.runs import command, in_fork, run

TINY = {"total_timesteps": 256, "num_steps": 64, "update_epochs": 1, "test_episodes": 2}
WRAPPERS = """
import gymnasium, numpy as np

class Doubled(gymnasium.ObservationWrapper):
    def __init__(self, env):
        super().__init__(env)
        box = env.observation_space
        self.observation_space = gymnasium.spaces.Box(
            np.tile(box.low, 2), np.tile(box.high, 2), (2 * box.shape[0],), box.dtype)
    def observation(self, obs):
        return np.tile(obs, 2)

def nothing(env): return None
def fails(env): raise KeyError("no such thing")
number = 7
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a module of wrappers."""
    (tmp_path / "wrappers_of_mine.py").write_text(WRAPPERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wrappers_of_mine", raising=False)
    return tmp_path


def test_train_leaves_what_the_script_leaves(tmp_path):
    run_dir = train(Config(**TINY, log_dir=str(tmp_path)))
    flags = [word for name, value in TINY.items() for word in ("--" + name.replace("_", "-"), str(value))]
    done = run(command("torch", 1, *flags, "--run-dir", str(tmp_path / "script")), tmp_path)
    assert done.returncode == 0, done.stderr
    assert run_dir.parent.parent == tmp_path
    name = "policy.safetensors"
    assert (run_dir / name).read_bytes() == (tmp_path / "script" / name).read_bytes()
    assert (run_dir / "summary.json").is_file()


def test_a_training_that_fails_does_not_end_the_program_around_it(tmp_path):
    """As it ends a script whose environment does not close."""

    def program():
        signals._SECONDS_TO_CLOSE = 0.2
        with pytest.raises(EnvironmentFault):
            train(Config(**TINY, env_id="tests.toy_envs:ToyRaise-v0", run_dir=str(tmp_path / "run")))
        time.sleep(0.6)
        return "goes on"

    assert in_fork(program, timeout=10) == "goes on"


def test_train_says_what_cannot_work(tmp_path):
    run_dir = train(Config(**TINY, run_dir=str(tmp_path / "run")))
    with pytest.raises(ConfigError, match="holds a run already"):
        train(Config(**TINY, run_dir=str(run_dir)))


def test_a_training_starts_with_a_trained_policy(tmp_path):
    first = train(Config(**TINY, normalize_observations=True, run_dir=str(tmp_path / "first")))
    spec = load_agent(first).spec
    trained, other = (make_agent(spec, Config(**TINY, normalize_observations=True, seed=7)) for _ in range(2))
    start_from(trained, str(first))
    obs = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    values = trained.values(torch.from_numpy(obs)).detach().numpy()
    assert np.array_equal(values, load_agent(first).value(obs))
    assert not np.array_equal(values, other.values(torch.from_numpy(obs)).detach().numpy())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"hidden_sizes": (8,)}, "its networks are .*64, 64.*; this run's, .*8,.*, are expected"),
        ({"env_id": "Acrobot-v1"}, "its observations are .*; this run's, .*, are expected"),
    ],
)
def test_another_kind_of_policy_is_no_start(tmp_path, flags, message):
    first = train(Config(**TINY, run_dir=str(tmp_path / "first")))
    with pytest.raises(ConfigError, match=f"^--init-from {first}: {message}$"):
        train(Config(**TINY | flags, init_from=str(first), run_dir=str(tmp_path / "second")))
    with pytest.raises(ConfigError, match=r"^--init-from nowhere: .*no policy.safetensors"):
        train(Config(**TINY, init_from="nowhere", run_dir=str(tmp_path / "third")))


def test_actions_start_with_the_deviation_asked_for():
    spec = env_spec("Test-v0", spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)))
    agent = make_agent(spec, Config(env_id="Pendulum-v1", log_std_init=-0.5))
    params = agent.policy_params(torch.zeros(1, 3))
    assert params[0, 2:].tolist() == [-0.5, -0.5]


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_wrapper_goes_round_every_environment_and_into_the_policy(here, backend):
    config = Config(**TINY, env_wrapper="wrappers_of_mine:Doubled", env_backend=backend, run_dir=str(here / "run"))
    policy = load_agent(train(config))
    assert policy.spec.observation.shape == (8,)
    assert policy.spec.wrapper == "wrappers_of_mine:Doubled"
    played = evaluate(policy, 1, 0)
    env = gymnasium.make("CartPole-v1")
    assert played.lengths[0] >= 1
    env.close()


def test_wrappers_go_round_each_other_in_order(here):
    """The image of MiniGrid's Dict exists once one-hot cells have been made of it."""
    wrappers = "minigrid.wrappers:OneHotPartialObsWrapper,minigrid.wrappers:ImgObsWrapper"
    env_id = "minigrid:MiniGrid-Empty-5x5-v0"
    policy = load_agent(train(Config(**TINY, env_id=env_id, env_wrapper=wrappers, run_dir=str(here / "run"))))
    assert policy.spec.observation.shape == (7, 7, 20)
    assert evaluate(policy, 1, seed=0).lengths


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ("nothing", "module:name is expected"),
        ("no_such_module:f", r"cannot be imported \(No module named 'no_such_module'\)"),
        ("wrappers_of_mine:missing", "cannot be imported .*has no attribute 'missing'.*"),
        ("wrappers_of_mine:number", "is a int; a function is expected"),
        ("wrappers_of_mine:nothing", "it returned NoneType; an environment is expected"),
        ("wrappers_of_mine:fails", "it raised KeyError: 'no such thing'"),
    ],
)
def test_what_is_no_wrapper_is_refused(here, wrapper, message):
    with pytest.raises(ConfigError, match=f"^--env-wrapper {wrapper}: {message}$"):
        train(Config(**TINY, env_wrapper=wrapper, run_dir=str(here / "run")))


def test_envpool_takes_no_wrapper(here):
    with pytest.raises(ConfigError, match=r"^--env-wrapper: --env-backend sync or async is needed"):
        Config(env_wrapper="wrappers_of_mine:Doubled", env_backend="envpool")
