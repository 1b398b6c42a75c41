"""Encoders and action masks against Gymnasium's flattening, published sizes and torch.distributions."""

import json
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Categorical as Reference

from fabric_ppo import Config, ConfigError, load_agent, train
from fabric_ppo.agents.encoders import Encoder
from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import SCRIPT_CONFIGS
from fabric_ppo.envs.masks import action_mask_from_info
from fabric_ppo.envs.repeatable import _random_action
from fabric_ppo.envs.spaces import EnvSpec, Packer, env_spec
from fabric_ppo.fast.loss_module import PPOLoss
from fabric_ppo.ppo.batch import blank_rows
from fabric_ppo.process.errors import flag
from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.tools import cli
from tests.nested_envs import OBSERVATION
from tests.runs import ROOT, command, run, run_ranks

NESTED, MASKED, IN_INFO = (f"tests.nested_envs:{name}-v0" for name in ("Nested", "Masked", "MaskInInfo"))
TINY = {"num_steps": 32, "total_timesteps": 192, "update_epochs": 2, "test_episodes": 2, "hidden_sizes": (16,)}
SPACES = {
    "nested": OBSERVATION,
    "multi": spaces.MultiDiscrete([3, 4], start=[2, -1]),
    "multi matrix": spaces.MultiDiscrete([[3, 4], [2, 2]]),
    "bits": spaces.MultiBinary([2, 3]),
    "choice": spaces.Discrete(4, start=7),
    "tuple of one": spaces.Tuple((spaces.Discrete(3),)),
}


def observation_spec(space):
    return env_spec("Test-v0", space, spaces.Discrete(3)).observation


def packed(space, samples):
    pack = Packer(observation_spec(space))
    return torch.from_numpy(np.stack([np.asarray(pack(sample)) for sample in samples]))


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_features_are_what_gymnasium_flattens_to(space, count):
    space.seed(1)
    samples = [space.sample() for _ in range(count)]
    encoder = Encoder(observation_spec(space))
    got = encoder(packed(space, samples), torch.float64)
    expected = np.stack([spaces.flatten(space, sample) for sample in samples])
    assert got.shape == (count, encoder.num_features)
    np.testing.assert_array_equal(got.numpy(), expected)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_a_row_of_zeros_is_no_error(space):
    """Batches are padded with them."""
    spec = observation_spec(space)
    assert torch.isfinite(Encoder(spec)(torch.from_numpy(np.zeros((8, *spec.shape), spec.dtype)), torch.float32)).all()


def test_nested_spaces_travel_as_json():
    spec = env_spec("Test-v0", OBSERVATION, spaces.Discrete(3))
    assert EnvSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.zeros((2, 3), np.float32)}, r"whose a has shape \(2, 3\); \(2, 2\) is expected"),
        ({"a": np.full((2, 2), np.nan, np.float32)}, "whose a is not finite"),
        ({"far": {"multi": np.zeros(2, np.int64)}}, r"whose far.big cannot be read \(KeyError\)"),
        ({"b": (5,)}, r"whose b.1 cannot be read \(IndexError\)"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    OBSERVATION.seed(0)
    with pytest.raises(ValueError, match=message):
        Packer(observation_spec(OBSERVATION))({**OBSERVATION.sample(), **change})


# images


def image_encoder(shape, name):
    return Encoder(observation_spec(spaces.Box(0, 255, shape, np.uint8)), name)


def test_networks_have_their_published_sizes():
    """Nature: 84 x 84 x 4 -> 20 x 20 x 32 -> 9 x 9 x 64 -> 7 x 7 x 64 = 3136 -> 512. IMPALA: 72 x 96 -> 9 x 12 x 32."""
    nature = image_encoder((84, 84, 4), "nature")
    sizes = (8 * 8 * 4 * 32 + 32) + (4 * 4 * 32 * 64 + 64) + (3 * 3 * 64 * 64 + 64) + (3136 * 512 + 512)
    assert sum(each.numel() for each in nature.parameters()) == sizes
    small = image_encoder((84, 84, 4), "small")  # 84 x 84 x 4 -> 20 x 20 x 16 -> 9 x 9 x 32 = 2592 -> 256
    sizes = (8 * 8 * 4 * 16 + 16) + (4 * 4 * 16 * 32 + 32) + (2592 * 256 + 256)
    assert sum(each.numel() for each in small.parameters()) == sizes
    impala = image_encoder((72, 96, 3), "impala")
    blocks = sum(9 * n * m + m + 4 * (9 * m * m + m) for n, m in ((3, 16), (16, 32), (32, 32)))
    assert sum(each.numel() for each in impala.parameters()) == blocks + 9 * 12 * 32 * 256 + 256


@pytest.mark.parametrize("name", ["nature", "impala", "small"])
def test_channels_may_come_first_or_last(name):
    torch.manual_seed(0)
    last = image_encoder((40, 36, 3), name)
    first = image_encoder((3, 40, 36), name)
    first.load_state_dict(last.state_dict())
    images = torch.randint(0, 256, (5, 40, 36, 3), dtype=torch.uint8)
    torch.testing.assert_close(first(images.movedim(-1, 1), torch.float32), last(images, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_layout_in_memory_changes_neither_features_nor_gradients(dtype):
    """Training and acting compute in different layouts: both are the layers, one after the other."""
    torch.manual_seed(0)
    encoder = image_encoder((4, 84, 84), "nature").to(dtype)
    leaf, images = encoder._leaves[0], torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    expected = leaf.head(leaf.layers(images.to(dtype) / 255).flatten(1)).relu()
    expected_grads = torch.autograd.grad(expected.square().sum(), list(encoder.parameters()))
    got = encoder(images, dtype)
    grads = torch.autograd.grad(got.square().sum(), list(encoder.parameters()))
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(encoder(images, dtype), expected)


@pytest.mark.parametrize(("shape", "has_weights"), [((84, 84, 4), True), ((7, 7, 3), False), ((35, 84, 3), False)])
def test_auto_takes_a_network_for_images_that_are_large_enough(shape, has_weights):
    assert image_encoder(shape, "auto").has_weights is has_weights


@pytest.mark.parametrize(
    ("shape", "name", "message"),
    [
        ((20, 40, 3), "nature", r"^--encoder nature: images are 20x40; at least 36x36 is needed, or flatten$"),
        ((84, 84), "impala", r"^--encoder impala: observations hold no image of bytes; auto or flatten is expected$"),
    ],
)
def test_images_that_a_network_cannot_take_are_refused(shape, name, message):
    with pytest.raises(ConfigError, match=message):
        image_encoder(shape, name)


@pytest.mark.parametrize("env_id", ["tests.nested_envs:Images-v0", "tests.nested_envs:ImagesFirst-v0"])
def test_an_agent_learns_from_images(tmp_path, env_id):
    """Where the bright half is: chance is 5 of 10."""
    flags = {"num_envs": 8, "num_steps": 32, "total_timesteps": 2560, "update_epochs": 4, "test_episodes": 10}
    config = Config(env_id=env_id, **flags, learning_rate=5e-4, hidden_sizes=(16,), run_dir=str(tmp_path / "run"))
    policy = load_agent(train(config))
    assert evaluate(policy, 10, 0).to_dict()["return_mean"] > 9


# one's own

MINE = """
import torch

class Two(torch.nn.Module):
    def __init__(self, space):
        super().__init__()
        self.num_features = 2
        self.layer = torch.nn.Linear(space.size, 2)
        self.nothing = torch.nn.Dropout(0.0)  # as a transformer's layers have it
    def forward(self, obs):
        return self.layer(obs.flatten(1)).tanh()

def fails(space): raise KeyError("no")
def nothing(space): return torch.nn.Linear(1, 1)

class Wide(Two):
    def __init__(self, space):
        super().__init__(space)
        self.num_features = 3

class Chance(Two):
    def __init__(self, space):
        super().__init__(space)
        self.layer = torch.nn.Sequential(self.layer, torch.nn.Dropout(0.5))

class Others(Two):
    def __init__(self, space):
        super().__init__(space)
        self.layer = torch.nn.Sequential(self.layer, torch.nn.BatchNorm1d(2))

class Narrow(Two):
    def forward(self, obs):
        return self.layer(obs[:, :1])
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_encoders.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_encoders", raising=False)


def test_an_encoder_of_ones_own_is_trained_and_loaded_again(tmp_path, mine):
    config = Config(**TINY, encoder="my_encoders:Two", run_dir=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"safetensors: its encoder is my_encoders:Two: load_agent\(\.\.\., own_code"):
        load_agent(train(config))
    agent = load_agent(tmp_path / "run", own_code=True)._agent
    begun = make_agent(agent.spec, config)
    obs = torch.randn(8, 4)
    layer = agent.encoder._leaves[0].network.layer
    hidden = agent.value[0](torch.tanh(obs @ layer.weight.T + layer.bias))
    torch.testing.assert_close(agent.values(obs), agent.value[2](hidden.relu()).squeeze(-1))
    assert not torch.equal(layer.weight, begun.encoder._leaves[0].network.layer.weight)
    assert cli.main(["evaluate", str(tmp_path / "run"), "--episodes", "1"]) == 2
    assert cli.main(["evaluate", str(tmp_path / "run"), "--episodes", "1", "--own-code"]) == 0


def test_an_encoder_of_ones_own_in_every_script(tmp_path):
    """Its class makes its weights, also with --ortho-init; all scripts train them, also when resumed."""
    flags = {"encoder": "tests.nested_envs:Linear", "ortho_init": True, "anneal_lr": False, "shared_trunk": True}
    spec = env_spec("CartPole-v1", spaces.Box(-1, 1, (4,)), spaces.Discrete(2))
    kept, other = (make_agent(spec, Config(**flags | {"ortho_init": ortho})).encoder for ortho in (True, False))
    assert torch.equal(kept._leaves[0].network.layer.weight, other._leaves[0].network.layer.weight)
    whole = result("torch", 1, tmp_path / "torch", **flags)
    assert result("fabric", 1, tmp_path / "fabric", **flags) == whole
    result("decoupled", 2, tmp_path / "decoupled", **flags | {"total_timesteps": 128})
    assert result("decoupled", 2, tmp_path / "decoupled", **flags, resume=True) == whole
    layer = load_agent(tmp_path / "torch", own_code=True)._agent.encoder._leaves[0].network.layer
    assert not torch.equal(layer.weight, kept._leaves[0].network.layer.weight)


def test_a_mask_does_not_go_through_an_encoder_of_ones_own():
    """Also where it is a Box."""
    parts = {"action_mask": spaces.Box(0, 1, (3,), np.int8), "speed": spaces.Box(-1, 1, (2,))}
    encoder = Encoder(observation_spec(spaces.Dict(parts)), "tests.nested_envs:Linear", num_choices=3)
    obs = {"action_mask": np.array([0, 1, 1], np.int8), "speed": np.array([0.5, -1], np.float32)}
    features = encoder(packed(spaces.Dict(parts), [obs]), torch.float32)
    assert features.shape == (1, 4 + 3)
    assert features[0, 4:].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "auto, flatten, nature, impala, small or module:Class is expected"),
        ("my_encoders:missing", "cannot be imported .*"),
        ("my_encoders:fails", "it raised KeyError: 'no'"),
        ("my_encoders:nothing", r"a torch\.nn\.Module with a whole number num_features is expected"),
        ("my_encoders:Wide", r"it makes \[2, 2\] of \[2, 4\]; \[2, num_features\], here 3, is expected"),
        ("my_encoders:Chance", r"its Dropout makes of an observation .*"),
        ("my_encoders:Others", r"its BatchNorm1d makes of an observation .*"),
        ("my_encoders:Narrow", r"with \[2, 4\] it raised RuntimeError: .*"),
    ],
)
def test_what_is_no_encoder_is_refused(tmp_path, mine, name, message):
    with pytest.raises(ConfigError, match=f"^--encoder {name}: {message}$"):
        train(Config(**TINY, encoder=name, run_dir=str(tmp_path / "run")))


# masks


def masked_agent(action=None, size=6):
    space = spaces.Dict({"action_mask": spaces.MultiBinary(size), "observation": spaces.Box(-1, 1, (3,))})
    agent = make_agent(env_spec("Test-v0", space, action or spaces.Discrete(6)), Config(ortho_init=True))
    torch.nn.init.normal_(agent.policy.linear_layers[-1].weight)
    return space, agent


def test_impossible_actions_have_probability_zero_everywhere():
    space, agent = masked_agent()
    space.seed(3)
    samples = [space.sample() for _ in range(200)]
    for sample in samples:
        sample["action_mask"][np.random.default_rng(0).integers(6)] = 1
    mask = torch.from_numpy(np.stack([sample["action_mask"] for sample in samples])).bool()
    obs = packed(space, samples)
    plain = torch.from_numpy(np.stack([sample["observation"] for sample in samples]))
    logits = agent.policy(plain)
    expected = Reference(logits=logits.masked_fill(~mask, -torch.inf))
    noise = agent.distribution.noise(torch.rand(200, 6))
    drawn, greedy = agent.act(obs, noise)[0], agent.act(obs, None)[0]
    assert mask.gather(1, drawn.unsqueeze(1)).all()
    assert torch.equal(greedy, expected.probs.argmax(-1))
    now = agent(obs, drawn)
    torch.testing.assert_close(now.log_probs, expected.log_prob(drawn))
    p = expected.probs
    torch.testing.assert_close(now.entropy, -(p * p.clamp(min=1e-38).log()).sum(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(now.values, agent.value(plain).squeeze(-1))
    assert torch.isfinite(torch.autograd.grad(now.entropy.sum(), agent.policy.linear_layers[0].weight)[0]).all()


def test_each_part_of_an_action_has_its_part_of_the_mask():
    space, agent = masked_agent(spaces.MultiDiscrete([2, 4]))
    sample = {"action_mask": np.array([0, 1, 0, 0, 1, 0], np.int8), "observation": np.zeros(3, np.float32)}
    obs = packed(space, [sample] * 50)
    drawn, _ = agent.act(obs, agent.distribution.noise(torch.rand(50, 6)))
    assert drawn.unique(dim=0).tolist() == [[1, 2]]
    torch.testing.assert_close(agent(obs, drawn).log_probs, torch.zeros(50))


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ConfigError, match=r"^action_mask has 5 entries; 6, one a choice, are expected$"):
        masked_agent(size=5)


FROM_INFO = "fabric_ppo.envs.masks:action_mask_from_info"
LARGE = {"num_envs": 64, "num_steps": 128, "update_epochs": 2, "per_rank_batch_size": 1024, "hidden_sizes": 32}


@pytest.mark.parametrize(("env_id", "wrapper"), [(MASKED, []), (IN_INFO, ["--env-wrapper", FROM_INFO])])
def test_no_impossible_action_is_taken_in_a_hundred_thousand_steps(tmp_path, env_id, wrapper):
    """The environment raises at one; the policy of chance, among what is possible, earns 10 an episode."""
    flags = [f"{flag(name)}={value}" for name, value in LARGE.items()]
    flags += ["--env-id", env_id, *wrapper, "--total-timesteps=106496", "--learning-rate=3e-3", "--num-threads=1"]
    done = run(command("torch", 0, *flags, "--run-dir", str(tmp_path / "run")), ROOT)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["env_steps"] == 106496
    assert summary["test"]["return_mean"] > 14


def test_no_impossible_action_is_taken_by_workers(tmp_path):
    flags = {"num_envs": 4, "num_steps": 64, "total_timesteps": 8192, "update_epochs": 4, "test_episodes": 10}
    flags |= {"env_id": MASKED, "env_backend": "async", "run_dir": str(tmp_path / "run")}
    policy = load_agent(train(Config(**flags, learning_rate=3e-3)))
    assert evaluate(policy, 20, 0).to_dict()["return_mean"] > 14


@pytest.mark.parametrize(
    ("space", "mask", "possible"),
    [
        (spaces.Discrete(4, start=3), [0, 1, 0, 255], [4, 6]),
        (spaces.MultiDiscrete([2, 3], start=[5, 0]), [1, 0, 0, 1, 1], [[5, 1], [5, 2]]),
        (spaces.MultiDiscrete([[2], [2]]), [0, 1, 1, 1], [[[1], [0]], [[1], [1]]]),
        (spaces.MultiBinary([1, 2]), [0, 1], [[[0, 0]], [[0, 1]]]),
    ],
)
def test_the_trial_of_an_environment_keeps_to_its_masks(space, mask, possible):
    """All that is possible is tried, in the form that the environment takes, and nothing else."""
    env = gymnasium.Env()
    env.action_space = space
    space.seed(0)
    drawn = [_random_action(env, {"action_mask": np.array(mask, np.uint8)}) for _ in range(50)]
    assert all(space.contains(each) for each in drawn)
    assert sorted({str(np.asarray(each).tolist()) for each in drawn}) == [str(each) for each in possible]


@pytest.mark.parametrize("ended", [False, True])
def test_a_mask_may_be_missing_only_where_an_episode_has_ended(ended):
    class Once(gymnasium.Env):
        observation_space, action_space = spaces.Discrete(3), spaces.MultiDiscrete([2, 3])

        def reset(self, *, seed=None, options=None):
            return 0, {"action_mask": np.array([0, 1, 1, 0, 1], bool)}

        def step(self, action):
            return 1, 0.0, ended, False, {}

    env = action_mask_from_info(Once())
    assert env.reset()[0]["action_mask"].tolist() == [0, 1, 1, 0, 1]
    if not ended:
        with pytest.raises(KeyError, match="info has no action_mask"):
            env.step([1, 0])
        return
    assert env.observation_space.contains(env.step([1, 0])[0])


def test_the_environment_of_the_masks_does_raise():
    env = gymnasium.make(MASKED)
    env.reset(seed=0)
    impossible = int(env.unwrapped.mask.argmin())
    with pytest.raises(ValueError, match="is impossible"):
        env.step(impossible)


# in whole runs


def result(script, world_size, run_dir, **flags):
    config = SCRIPT_CONFIGS[script](**TINY | flags, run_dir=str(run_dir))
    assert run_ranks(script, [config] * world_size) == [""] * world_size
    return (run_dir / "policy.safetensors").read_bytes()


@pytest.mark.parametrize("env_id", [NESTED, MASKED, "tests.nested_envs:Images-v0"])
def test_the_architectures_learn_the_same(tmp_path, env_id):
    flags = {"env_id": env_id, "num_envs": 2}
    policies = [result(script, 1, tmp_path / script, **flags) for script in ("torch", "fabric")]
    policies.append(result("decoupled", 2, tmp_path / "decoupled", **flags))
    assert policies[0] == policies[1] == policies[2]
    two = [result(script, 2, tmp_path / f"{script}2", **flags | {"num_envs": 1}) for script in ("torch", "fabric")]
    assert two[0] == two[1]


@pytest.mark.parametrize(
    ("env_id", "encoder"), [("Choices", "auto"), ("Bits", "auto"), ("Images", "impala"), ("ImagesFirst", "nature")]
)
def test_every_kind_of_observation_in_every_script(tmp_path, env_id, encoder):
    """The same bits from all three, also when resumed; the policy plays its test again."""
    flags = {"env_id": f"tests.nested_envs:{env_id}-v0", "encoder": encoder, "num_envs": 2, "anneal_lr": False}
    flags |= {"num_steps": 8, "total_timesteps": 48, "seed": 3}
    whole = result("torch", 1, tmp_path / "torch", **flags)
    assert result("fabric", 1, tmp_path / "fabric", **flags) == whole
    for script, size in (("torch", 1), ("decoupled", 2)):
        result(script, size, tmp_path / f"{script} parts", **flags | {"total_timesteps": 32})
        assert result(script, size, tmp_path / f"{script} parts", **flags, resume=True) == whole
    told = json.loads((tmp_path / "decoupled parts" / "summary.json").read_text())
    assert told["exact_resume"] is True
    assert evaluate(load_agent(tmp_path / "torch"), 2, seed=3).returns == told["test"]["returns"]


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("env_id", [NESTED, MASKED])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, env_id, backend):
    flags = {"env_id": env_id, "env_backend": backend, "anneal_lr": False}
    whole = result("torch", 1, tmp_path / "whole", **flags)
    result("torch", 1, tmp_path / "parts", **flags | {"total_timesteps": 64})
    assert result("torch", 1, tmp_path / "parts", **flags, resume=True) == whole
    assert '"exact_resume": true' in (tmp_path / "parts" / "summary.json").read_text()


def test_a_policy_takes_nested_observations_one_or_many(tmp_path):
    policy = load_agent(train(Config(**TINY, env_id=NESTED, run_dir=str(tmp_path / "run"))))
    env = gymnasium.make(NESTED)
    obs = [env.observation_space.sample() for _ in range(11)]
    assert [policy.act(each) for each in obs] == policy.act(obs).tolist()
    rows = np.stack([policy.pack(each) for each in obs])
    assert np.array_equal(policy.value(rows), policy.value(obs))


def test_what_cannot_be_fused_goes_by_autograd():
    _, agent = masked_agent()
    config = Config(per_rank_batch_size=8)
    loss = PPOLoss(agent, config)
    value = loss(blank_rows(agent, 8)).loss
    value.backward()
    assert loss.weights.flat.grad is not None
