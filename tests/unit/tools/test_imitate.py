"""`imitate`: from an expert's episodes to a policy that plays as well, and that training starts from."""

from __future__ import annotations

import dataclasses
import json

import gymnasium
import numpy as np
import pytest
import yaml
from gymnasium import spaces

from fabric_ppo.agents.make import make_agent
from fabric_ppo.agents.policy import Policy, load_agent
from fabric_ppo.api import evaluate, train
from fabric_ppo.config import Config, TorchConfig
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.envs.make import make_envs
from fabric_ppo.envs.nested_actions import nested
from fabric_ppo.envs.spaces import EnvSpec, part_at
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.rollouts.demonstrations import Demonstrations, read_demonstrations, to_bytes, unpacked
from fabric_ppo.run.result import load_run
from fabric_ppo.tools import cli
from fabric_ppo.tools.commands.evaluate import evaluate_parser
from fabric_ppo.tools.commands.imitate import TAKEN, imitate_parser
from fabric_ppo.tools.flags import parse_flags
from fabric_ppo.tools.imitate import load
from tests.fixtures.agents import agent_for
from tests.fixtures.launching import ROOT
from tests.fixtures.mixed_envs import BEST, wanted
from tests.fixtures.pages import of_kind


class Expert(Policy):
    """Balances CartPole's pole by a rule that always reaches 500."""

    def act(self, obs, noise=None, memory=None):
        return (obs @ [0.1, 0.5, 1.0, 1.0] > 0).astype(np.int64)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The expert's episodes, and a policy that imitates them."""
    folder = tmp_path_factory.mktemp("imitate")
    result = evaluate(Expert(agent_for("CartPole-v1")), 10, record=folder / "demos.npz")
    assert result.returns == [500.0] * 10
    words = ["imitate", "--data", str(folder / "demos.npz"), "--out", str(folder / "clone"), "--quiet"]
    assert cli.main([*words, "--epochs", "40", "--normalize-observations", "--seed", "3"]) == 0
    return folder


def test_the_copy_plays_as_the_expert(files):
    found = evaluate(files / "clone", episodes=10, seed=1)
    assert np.mean(found.returns) > 475
    demonstrations = read_demonstrations(files / "demos.npz")
    copy = load_agent(files / "clone").act(demonstrations.obs)
    assert np.mean(copy == demonstrations.actions) > 0.95


def test_its_folder_has_what_a_run_has(files, capsys):
    run = load_run(files / "clone")
    assert run.flags["env_id"] == "CartPole-v1"
    assert run.flags["normalize_observations"] is True
    assert run.summary["script"] == "imitate"
    assert run.summary["demonstrations"] == {"episodes": 10, "transitions": 5000, "validation": 0.1}
    nlls = run.metrics["Imitation/validation_nll"]
    assert len(nlls) == run.summary["updates"] == 40
    assert run.summary["best_epoch"] == 1 + nlls.argmin()
    assert run.summary["best"]["validation_nll"] == nlls.min()
    assert "Imitation/squared_error" not in run.metrics
    assert cli.main(["runs", str(files), "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["script"], shown["state"], shown["problems"]) == ("imitate", "done", [])
    assert cli.main(["report", str(files / "clone"), "--out", str(files / "report.html")]) == 0
    assert cli.main(["plot", str(files / "clone"), "--metric", "Imitation/train_nll", "--out", f"{files}/a.svg"]) == 0


def test_the_same_data_and_seed_give_the_same_bits(files, tmp_path):
    def policy(name, *flags):
        words = ["imitate", "--data", str(files / "demos.npz"), "--out", str(tmp_path / name), "--quiet"]
        assert cli.main([*words, "--epochs", "1", *flags]) == 0
        return (tmp_path / name / "policy.safetensors").read_bytes()

    assert policy("a") == policy("b") != policy("c", "--seed", "1")


def test_ppo_starts_with_what_was_learned(files, tmp_path):
    """The flags of the networks are in its config.yaml, so that two flags are enough."""
    own = {"num_envs": 4, "num_steps": 500, "total_timesteps": 2000, "test_episodes": 0, "gamma": 0.98}
    config = TorchConfig(config=files / "clone/config.yaml", init_from=files / "clone", run_dir=tmp_path / "run", **own)
    run = train(config, verbose=False)
    assert run.summary["train_return_mean"] > 150, "an agent with new weights has about 20"
    with pytest.raises(ConfigError, match="its networks are"):
        train(TorchConfig(init_from=files / "clone", run_dir=tmp_path / "other", **own), verbose=False)


def test_the_training_goes_on_from_a_policy(files, tmp_path):
    words = ["imitate", "--data", str(files / "demos.npz"), "--out", str(tmp_path / "on"), "--epochs", "1", "--quiet"]
    assert cli.main([*words, "--normalize-observations", "--init-from", str(files / "clone")]) == 0
    before, after = (load_run(each).metrics["Imitation/train_nll"][0] for each in (files / "clone", tmp_path / "on"))
    assert after < before / 2


def test_each_epoch_has_a_line(files, tmp_path, capsys):
    words = ["imitate", "--data", str(files / "demos.npz"), "--out", str(tmp_path / "a"), "--epochs", "2"]
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == ["epoch 1/2", "epoch 2/2"]
    assert "negative log-likelihood" in lines[0]
    assert "accuracy" in lines[0]
    assert lines[2].startswith("imitated 10 episodes, 5,000 transitions; the weights are those of epoch ")
    assert lines[4].endswith(f"evaluate {tmp_path / 'a'}")
    assert lines[5].endswith(f"--config {tmp_path}/a/config.yaml --init-from {tmp_path}/a")


def test_a_file_brings_the_flags_of_its_environment(files, tmp_path):
    """Wrapper, arguments, parts and frames: with them training makes the same environment."""
    found = read_demonstrations(files / "demos.npz")
    space = spaces.Dict({"b": spaces.Box(-1, 1, (2,)), "a": spaces.Box(-1, 1, (4,))})
    spec = dataclasses.replace(env_spec("My-v0", space, spaces.Discrete(2)), make_args='{"x": 1}', wrapper="m:f")
    made = dataclasses.replace(
        found, spec=spec, obs=np.zeros((5000, 24), np.uint8), final_obs=np.zeros((10, 24), np.uint8)
    )
    (tmp_path / "made.npz").write_bytes(to_bytes(made))
    config, read = load(Config(), set(), [str(tmp_path / "made.npz")])
    assert read.spec == spec
    expected = {"env_id": "My-v0", "env_kwargs": '{"x": 1}', "env_wrapper": "m:f", "obs_keys": "a,b", "frame_stack": 1}
    assert {name: getattr(config, name) for name in expected} == expected
    load(Config(obs_keys="b,a"), {"obs_keys"}, [str(tmp_path / "made.npz")])
    with pytest.raises(ConfigError, match=r"--obs-keys a: .* has a,b; all are taken"):
        load(Config(obs_keys="a"), {"obs_keys"}, [str(tmp_path / "made.npz")])


@pytest.mark.parametrize(("action", "keys"), [(spaces.Discrete(3), "a"), (spaces.Box(-1, 1, (3,)), "a,action_mask")])
def test_a_part_is_a_mask_only_where_there_are_choices(tmp_path, action, keys):
    """Training takes a mask unnamed, but not an observation of that name."""
    space = spaces.Dict({"a": spaces.Box(-1, 1, (1,)), "action_mask": spaces.MultiBinary(3)})
    spec, zeros = env_spec("My-v0", space, action), np.zeros((1, 7), np.uint8)
    end, taken = np.ones(1, bool), np.zeros((1, *action.shape), action.dtype)
    made = Demonstrations(spec, zeros, taken, np.zeros(1), end, ~end, end, zeros)
    (tmp_path / "a.npz").write_bytes(to_bytes(made))
    config, _ = load(Config(), set(), [str(tmp_path / "a.npz")])
    assert config.obs_keys == keys
    assert env_spec("My-v0", space, action, obs_keys=keys) == spec


@pytest.mark.parametrize("fit", ["clip", "rescale", "squash"])
def test_continuous_actions_fit_the_bounds_as_the_new_agent_has_them(tmp_path, fit):
    policy = Policy(agent_for("Pendulum-v1"))
    evaluate(policy, 2, record=tmp_path / "a.npz", stochastic=True)
    words = ["imitate", "--data", str(tmp_path / "a.npz"), "--out", str(tmp_path / "clone"), "--epochs", "2", "--quiet"]
    assert cli.main([*words, "--action-bounds", fit, "--validation", "0.5"]) == 0
    agent = load_agent(tmp_path / "clone")
    assert agent.spec.action.fit == fit
    config = Config(env_id="Pendulum-v1", action_bounds=fit)
    assert yaml.safe_load((tmp_path / "clone/config.yaml").read_text())["action_bounds"] == fit
    assert make_agent(agent.spec, config).spec == agent.spec
    assert "Imitation/squared_error" in load_run(tmp_path / "clone").metrics


class Wanted(Policy):
    """Takes the one action that is worth most in `Parts`."""

    def act(self, obs, noise=None, memory=None):
        return batch_of(self.spec, [wanted(goal) for goal in obs_of(self.spec, obs).argmax(1)])


def obs_of(spec, rows):
    """The goals that are seen in packed observations."""
    return unpacked(spec.observation, rows)["observation",] if spec.observation.parts else rows


def batch_of(spec, actions):
    paths = [path for path, _ in spec.action.parts]
    return nested(paths, [np.stack([part_at(each, path) for each in actions]) for path in paths])


@pytest.mark.parametrize("fit", ["clip", "rescale", "squash"])
@pytest.mark.parametrize("name", ["Parts-v0", "PartsFlatMask-v0", "PartsMasks-v0"])
def test_nested_actions_are_imitated_and_training_starts_with_them(tmp_path, name, fit, capsys):
    """The expert's every step is worth 8; the environment raises at an action that it does not have."""
    env_id = f"tests.fixtures.mixed_envs:{name}"
    expert = Wanted(agent_for(env_id))
    assert evaluate(expert, 20, record=tmp_path / "a.npz").returns == [10 * BEST] * 20
    words = ["imitate", "--data", str(tmp_path / "a.npz"), "--out", str(tmp_path / "clone"), "--epochs", "60"]
    assert cli.main([*words, "--action-bounds", fit, "--learning-rate", "1e-2"]) == 0
    assert "accuracy 1, mean squared error " in capsys.readouterr().out
    agent = load_agent(tmp_path / "clone")
    assert agent.spec == policy_spec(env_id, fit), "as training has it"
    assert np.mean(evaluate(tmp_path / "clone", episodes=10, own_code=True).returns) > 78
    own = {"num_envs": 2, "num_steps": 50, "total_timesteps": 100, "test_episodes": 0, "run_dir": tmp_path / "run"}
    run = train(TorchConfig(config=tmp_path / "clone/config.yaml", init_from=tmp_path / "clone", **own), verbose=False)
    assert run.summary["train_return_mean"] > (40 if name == "Parts-v0" else 50), "chance has about 35"


def policy_spec(env_id, fit):
    config = Config(env_id=env_id, num_envs=1, action_bounds=fit)
    envs = make_envs(config, 0, 1)
    envs.close()
    return envs.spec


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """A run with --critic-keys, and a file that was recorded of it."""
    folder = tmp_path_factory.mktemp("keyed")
    own = {"num_envs": 2, "num_steps": 32, "total_timesteps": 64, "test_episodes": 0, "run_dir": folder / "run"}
    env_id = "tests.fixtures.hidden_envs:Hidden-v0"
    train(TorchConfig(env_id=env_id, critic_keys="state,goal.inner", **own), verbose=False)
    words = ["evaluate", str(folder / "run"), "--own-code", "--episodes", "4", "--record", str(folder / "a.npz")]
    assert cli.main(words) == 0
    return folder


def test_of_a_run_with_critic_keys_what_its_policy_sees_is_recorded(keyed, tmp_path, capsys):
    """A copy starts a training without the flag, and is no policy for one with it."""
    found = read_demonstrations(keyed / "a.npz")
    assert [path for path, _ in found.spec.observation.parts] == [("goal", "seen")]
    words = ["imitate", "--data", str(keyed / "a.npz"), "--out", str(tmp_path / "clone"), "--epochs", "1", "--quiet"]
    assert cli.main(words) == 0
    own = {"num_envs": 2, "num_steps": 32, "total_timesteps": 64, "test_episodes": 0, "init_from": tmp_path / "clone"}
    train(TorchConfig(config=tmp_path / "clone/config.yaml", run_dir=tmp_path / "run", **own), verbose=False)
    with pytest.raises(ConfigError) as error:
        train(TorchConfig(config=keyed / "run/config.yaml", run_dir=tmp_path / "keyed", **own), verbose=False)
    its, also = "(goal.seen Box(2) float32)", "the value network also goal.inner Discrete(2), state Box(1) float32"
    assert str(error.value) == (
        f"--init-from {tmp_path / 'clone'}: its observations are {its}; this run's, {its[:-1]}; {also}), are expected"
    )
    assert not (tmp_path / "keyed").exists()


@pytest.mark.parametrize("how", ["flag", "file"])
def test_critic_keys_are_refused_with_the_reason(keyed, tmp_path, capsys, how):
    keys = "state,goal.inner"
    flags = ["--critic-keys", keys] if how == "flag" else ["--config", keyed / "run/config.yaml"]
    assert cli.main(list(map(str, ["imitate", "--data", keyed / "a.npz", "--out", tmp_path / "out", *flags]))) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: --critic-keys {keys}: demonstrations have only what a policy sees")
    assert not (tmp_path / "out").exists()


def refused(capsys, *words):
    """The line with which a command is refused, with status 2."""
    assert cli.main(list(map(str, words))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--num-envs", "4"], "--num-envs: has no meaning in imitate; see fabric-ppo imitate --help"),
        (["--no-share-data"], "--no-share-data: has no meaning in imitate"),
        (["--sequence-length=4"], "--sequence-length: has no meaning in imitate"),
        (["--epochs", "0"], "--epochs 0: a whole number from 1 up"),
        (["--update-epochs", "0"], "--epochs 0: a whole number from 1 up"),
        (["--validation", "1"], "--validation 1: a number from 0 to below 1"),
        (["--validation", "nan"], "--validation nan: a number from 0 to below 1"),
        (["--hidden-sizes", "no"], "--hidden-sizes no: a list of whole numbers"),
        (["--hiden-sizes", "8"], "--hiden-sizes: unknown flag; did you mean --hidden-sizes?"),
        (["--env-id", "Pendulum-v1"], "--env-id Pendulum-v1: {demos} has --env-id CartPole-v1; without the flag"),
        (["--env-wrapper", "m:f"], "--env-wrapper m:f: {demos} has --env-wrapper None; without"),
        (["--obs-keys", "a"], "--obs-keys a: {demos} has no parts; all are taken"),
        (["--validation", "0.99"], "--validation 0.99: it holds out 10 of 10 demonstrated episodes"),
        (["--encoder", "no:Such"], "--encoder no:Such"),
        (["--init-from", "nowhere"], "--init-from nowhere: there is no such folder"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(files, tmp_path, capsys, flags, expected):
    demos, out = files / "demos.npz", tmp_path / "a" / "out"
    line = refused(capsys, "imitate", "--data", demos, "--out", out, *flags)
    assert line.startswith(expected.format(demos=demos))
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_data_that_cannot_be_used_is_refused_in_one_line(files, tmp_path, capsys):
    demos, out = files / "demos.npz", tmp_path / "out"
    (tmp_path / "text.npz").write_text("hello")
    evaluate(Policy(agent_for("Pendulum-v1")), 1, record=tmp_path / "pendulum.npz")
    found = read_demonstrations(demos)
    values = json.loads(found.spec.to_json())
    values["observation"]["dtype"] = "float64"
    other = dataclasses.replace(found, spec=EnvSpec.from_json(json.dumps(values)), obs=found.obs.astype(np.float64))
    (tmp_path / "wide.npz").write_bytes(to_bytes(other))
    for sources, expected in {
        ("none.npz",): "none.npz: there is no such file",
        (tmp_path / "text.npz",): f"{tmp_path}/text.npz: cannot be read (no archive of NumPy)",
        (demos, demos): f"--data {demos}: it is given twice",
        (
            demos,
            tmp_path / "pendulum.npz",
        ): f"{tmp_path}/pendulum.npz: is of Pendulum-v1, and the demonstrations before",
        (
            demos,
            tmp_path / "wide.npz",
        ): f"{tmp_path}/wide.npz: its spaces are Box(4) float64 and Discrete(2), and those",
    }.items():
        assert refused(capsys, "imitate", "--data", *sources, "--out", out).startswith(expected)
    assert not out.exists()
    assert "--data" in refused(capsys, "imitate", "--out", out)


def test_a_folder_with_something_in_it_is_left_alone(files, tmp_path, capsys):
    demos = files / "demos.npz"
    assert refused(capsys, "imitate", "--data", demos, "--out", files / "clone").endswith(
        "holds a run already; a new folder is expected"
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes").write_text("")
    assert refused(capsys, "imitate", "--data", demos, "--out", tmp_path / "mine").endswith(
        "is not empty; a new folder is expected"
    )
    assert refused(capsys, "imitate", "--data", demos, "--out", tmp_path / "mine/notes").endswith(
        "a folder is expected"
    )


def test_it_is_no_run_to_go_on_with(files):
    with pytest.raises(ConfigError, match="holds a policy that imitates demonstrations; --init-from"):
        train(TorchConfig(run_dir=files / "clone", resume=True))


def test_the_page_of_help_names_the_flags_that_are_taken(capsys):
    with pytest.raises(SystemExit):
        cli.main(["imitate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"--{name.replace('_', '-')}" in text for name in TAKEN)


def test_a_dataset_of_minari_is_imitated(tmp_path, monkeypatch, capsys):
    pytest.importorskip("h5py")  # of the extra
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    env = minari.DataCollector(gymnasium.make("CartPole-v1"))
    for seed in range(8):
        obs, ended = env.reset(seed=seed)[0], False
        while not ended:
            obs, _, terminated, truncated, _ = env.step(int(obs @ [0.1, 0.5, 1.0, 1.0] > 0))
            ended = terminated or truncated
    env.create_dataset(dataset_id="cartpole/expert-v0")
    words = ["imitate", "--data", "minari:cartpole/expert-v0", "--out", str(tmp_path / "clone"), "--epochs", "40"]
    line = refused(capsys, *words, "--env-id", "Pendulum-v1")
    assert line == "minari:cartpole/expert-v0: is of CartPole-v1, and not of Pendulum-v1"
    line = refused(capsys, *words, "--env-wrapper", "gymnasium.wrappers:FlattenObservation", "--obs-keys", "a")
    assert "--obs-keys a" in line
    assert not (tmp_path / "clone").exists()
    assert cli.main([*words, "--normalize-observations", "--quiet"]) == 0
    assert np.mean(evaluate(tmp_path / "clone", episodes=5).returns) > 350, "chance has about 20"


def test_a_loss_that_is_not_finite_is_a_failure(files, tmp_path, capsys):
    words = ["imitate", "--data", str(files / "demos.npz"), "--out", str(tmp_path / "a"), "--quiet", "--epochs", "1"]
    assert cli.main([*words, "--learning-rate", "1e30", "--max-grad-norm", "1e30"]) == 1
    assert "the loss is not finite in epoch 1" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_flags_of_another_script_in_the_file_are_told_once(files, tmp_path, capsys):
    (tmp_path / "flags.yaml").write_text("cuda: false\nhidden-sizes: [16]\n")
    words = ["imitate", "--data", str(files / "demos.npz"), "--out", str(tmp_path / "a"), "--epochs", "1"]
    assert cli.main([*words, "--config", str(tmp_path / "flags.yaml")]) == 0
    said = capsys.readouterr()
    assert (said.out + said.err).count("ignoring --cuda of another script") == 1
    assert load_run(tmp_path / "a").flags["hidden_sizes"] in ((16,), [16])


def test_the_page_lists_the_flags_and_its_commands_parse(capsys):
    page = (ROOT / "docs/imitate.md").read_text()
    own = {word for action in imitate_parser()._actions for word in action.option_strings} - {"-h", "--help"}
    assert all(f"`{name}" in page for name in own)
    commands = [line.split()[3:] for line in page.splitlines() if line.startswith("python -m fabric_ppo ")]
    assert {words[0] for words in commands} == {"evaluate", "imitate", "train"}
    for words in [*commands, *(words[3:] for words in of_kind("imitate"))]:
        if words[0] == "imitate":
            given, flags = imitate_parser().parse_known_args([word.replace("S", "1") for word in words[1:]])
            assert given.data == ["demos.npz"]
            assert parse_flags(Config, flags).config in ("lunarlander-fast", "cartpole")
        elif words[0] == "train":
            parse_flags(TorchConfig, words[2:])
        else:
            evaluate_parser().parse_args(words[1:])
