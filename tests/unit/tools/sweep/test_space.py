"""Space files: what is read, what is refused, and that the line says why."""

from __future__ import annotations

import pytest
import yaml

from fabric_ppo.config import TorchConfig
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.tools.sweep.space import Choices, Range, read_space

pytestmark = pytest.mark.usefixtures("no_launcher")
RATE = "learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}\n"


def read(folder, text):
    path = folder / "space.yaml"
    path.write_text(text)
    return read_space(str(path))


def test_flags_are_fixed_or_searched_with_their_types(tmp_path):
    space = read(
        tmp_path,
        """
        config: cartpole
        total-timesteps: 1e5
        learning_rate: {low: 1e-4, high: 1.0e-2, log: true}
        num_steps: {low: 32, high: 1e2, step: 4}
        gamma: {low: 0.9, high: 0.99, step: 0.03}
        target_kl: {choices: [null, 0.02]}
        hidden_sizes: {choices: [[64, 64], [32]]}
        env_kwargs: {choices: [{sutton_barto_reward: true}, {sutton_barto_reward: false}]}
        ortho_init: {choices: [true, false]}
        """,
    )
    assert space.searched == {
        "learning_rate": Range(1e-4, 1e-2, log=True),
        "num_steps": Range(32, 100, step=4),
        "gamma": Range(0.9, 0.99, step=0.03),
        "target_kl": Choices((None, 0.02)),
        "hidden_sizes": Choices(((64, 64), (32,))),
        "env_kwargs": Choices(('{"sutton_barto_reward": true}', '{"sutton_barto_reward": false}')),
        "ortho_init": Choices((True, False)),
    }
    assert all(isinstance(each, int) for each in space.searched["num_steps"].ends)
    # of the preset, but for what the file says and what is searched
    assert space.fixed["total_timesteps"] == 100000
    assert space.fixed["gae_lambda"] == 0.95
    assert not space.fixed.keys() & space.searched.keys()


def test_a_mapping_is_no_search_where_the_flag_is_one(tmp_path):
    space = read(tmp_path, RATE + "env_kwargs: {sutton_barto_reward: true}\n")
    assert space.fixed["env_kwargs"] == '{"sutton_barto_reward": true}'


def test_what_is_written_is_read_again(tmp_path):
    text = "hidden_sizes: {choices: [[64, 64], [32]]}\nenv_kwargs: {sutton_barto_reward: true}\n"
    text += "num_steps: {low: 32, high: 64, step: 16}\nactivation_function: {choices: [relu, tanh]}\n"
    space = read(tmp_path, RATE + text)
    assert read(tmp_path, yaml.safe_dump(space.to_yaml(), sort_keys=False)) == space


def test_flags_of_a_trial_are_those_of_a_config(tmp_path):
    """Lists travel as JSON, since Optuna stores texts and numbers."""
    space = read(tmp_path, "hidden_sizes: {choices: [[64, 64], [32]]}\ngamma: 0.9\n")
    assert list(space.searched["hidden_sizes"].labels) == ["[64, 64]", "[32]"]
    assert TorchConfig(**space.flags({"hidden_sizes": "[32]"})) == TorchConfig(hidden_sizes=(32,), gamma=0.9)


REFUSED = {
    "gama: {low: 0.9, high: 1}": "unknown key gama; did you mean --gamma?",
    "gamma: {low: 0.99, high: 0.9}": "gamma: low 0.99 is above high 0.9",
    "gamma: {low: 0, high: 1, log: true}": "gamma: low 0.0: with log a number above 0 is expected",
    "gamma: {low: 0.1, high: 1, log: true, step: 0.1}": "gamma: step and log exclude each other",
    "gamma: {low: 0.1, high: 1, log: 1}": "gamma: log 1: true or false is expected",
    "gamma: {low: 0, high: 1, step: 0}": "gamma: step 0.0: a number above 0 is expected",
    "gamma: {low: 0, high: 1, step: 0.3}": "low and a multiple of step 0.3 is expected, such as 0.9",
    "num_steps: {low: 32, high: 100, step: 32}": "low and a multiple of step 32 is expected, such as 96",
    "gamma: {low: a, high: 1}": "gamma: low a: a number is expected",
    "gamma: {low: .nan, high: 1}": "gamma: low nan: a number is expected",
    "target_kl: {low: null, high: 1}": "target_kl: low None: a number is expected",
    "num_steps: {low: 1.5, high: 4}": "num_steps: low 1.5: a whole number is expected",
    "gamma: {low: 0.9}": "is expected",
    "gamma: {min: 0.9, max: 1}": "{low: L, high: H}",
    "gamma: {choices: []}": "gamma: choices []: a list of at least two values is expected",
    "gamma: {choices: [0.9]}": "gamma: choices [0.9]: a list of at least two values is expected",
    "gamma: {choices: 0.9}": "gamma: choices 0.9: a list of at least two values is expected",
    "gamma: {choices: [0.9, 0.90]}": "each value once is expected",
    "gamma: {choices: [0.9, b]}": "gamma b: a number is expected",
    "hidden_sizes: {low: 32, high: 64}": "hidden_sizes: has no numbers between low and high",
    "anneal_lr: {low: 0, high: 1}": "anneal_lr: has no numbers",
    "seed: {choices: [1, 2]}": "seed: cannot be in a space",
    "run_dir: {choices: [a, b]}": "run_dir: cannot be in a space",
    "resume: {choices: [true, false]}": "resume: cannot be in a space",
    "config: {choices: [cartpole, pendulum]}": "config",
    "env_id: {choices: [CartPole-v1, Acrobot-v1]}": "env_id: cannot be searched",
    "test_episodes: {low: 1, high: 9}": "test_episodes: cannot be searched",
    "num_threads: {low: 1, high: 2}": "num_threads: cannot be searched",
    "gamma: {choices: [0.9, 1.5]}": "--gamma 1.5: a number from 0 to 1 is expected",
    "gamma: {low: 0.5, high: 1.5}": "--gamma 1.5: a number from 0 to 1 is expected",
    "desired_kl: {choices: [null, 0.01]}": "--desired-kl 0.01: --no-anneal-lr is needed too",
    "num_steps: {low: 64, high: 65536}": "--total-timesteps 65536: at least 131072",
    "gamma: 0.9": "no flag to be searched",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_work_is_refused_in_one_line_that_names_it(tmp_path, text):
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, text + "\n")
    assert REFUSED[text] in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["seed: 1", "run_dir: x", "resume: true", "log_dir: y"])
def test_what_the_sweep_gives_itself_cannot_be_given(tmp_path, name):
    with pytest.raises(ConfigError, match=f"{name.partition(':')[0]}: cannot be in a space"):
        read(tmp_path, f"{RATE}{name}\n")


def test_tests_and_environments_are_needed(tmp_path):
    with pytest.raises(ConfigError, match="--test-episodes 0: a trial's value is the return of its tests"):
        read(tmp_path, RATE + "test_episodes: 0\n")
    with pytest.raises(ConfigError, match="Nothing-v0"):
        read(tmp_path, RATE + "env_id: Nothing-v0\n")


def test_a_large_space_is_checked_value_by_value(tmp_path):
    """Ten flags of four choices are a million combinations; the one bad value is found."""
    names = ("gamma", "gae_lambda", "ent_coef", "vf_coef", "clip_coef", "max_grad_norm", "adam_eps", "learning_rate")
    text = "".join(f"{name}: {{choices: [0.1, 0.2, 0.3, 0.4]}}\n" for name in names)
    assert len(read(tmp_path, text).searched) == 8
    with pytest.raises(ConfigError, match=r"--gae-lambda 1\.5"):
        read(tmp_path, text.replace("gae_lambda: {choices: [0.1, 0.2, 0.3", "gae_lambda: {choices: [0.1, 0.2, 1.5"))
