"""Encoders against Gymnasium's flattening, published sizes and their own layers."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fabric_ppo.agents.encoders import Encoder
from fabric_ppo.agents.make import make_agent
from fabric_ppo.agents.policy import load_agent
from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.tools import cli
from tests.fixtures.configs import tiny
from tests.fixtures.nested_envs import OBSERVATION
from tests.fixtures.spaces import observation_spec, packed

FLAGS = tiny(hidden_sizes=(16,))


SPACES = {
    "nested": OBSERVATION,
    "multi": spaces.MultiDiscrete([3, 4], start=[2, -1]),
    "multi matrix": spaces.MultiDiscrete([[3, 4], [2, 2]]),
    "bits": spaces.MultiBinary([2, 3]),
    "choice": spaces.Discrete(4, start=7),
    "tuple of one": spaces.Tuple((spaces.Discrete(3),)),
}


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
def test_a_row_of_zeros_has_finite_features(space):
    """Batches are padded with them."""
    spec = observation_spec(space)
    assert torch.isfinite(Encoder(spec)(torch.from_numpy(np.zeros((8, *spec.shape), spec.dtype)), torch.float32)).all()


def image_encoder(shape, name, most=255):
    return Encoder(observation_spec(spaces.Box(0, most, shape, np.uint8)), name)


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


LARGE = 2**62
WHOLE = {
    "bits": spaces.Box(0, 1, (3,), np.uint8),
    "signed": spaces.Box(-100, 100, (3,), np.int8),
    "words": spaces.Box(0, 60000, (3,), np.uint16),
    "double words": spaces.Box(0, 60000, (2, 2), np.uint32),
    "unsigned": spaces.Box(0, 60000, (3,), np.uint64),
    "beyond int64": spaces.Box(2**63, 2**64 - 2, (3,), np.uint64),
    "large": spaces.Box(-LARGE, LARGE, (3,), np.int64),
    "narrow and large": spaces.Box(2**60, 2**60 + 100, (2,), np.int64),
    "narrow and unsigned": spaces.Box(2**63 + 5, 2**63 + 105, (2,), np.uint64),
    "least of all": spaces.Box(-(2**63) + 1, -(2**63) + 6, (2,), np.int64),
    "far from zero": spaces.Box(10**9, 10**9 + 100, (3,), np.int32),
    "each its own": spaces.Box(np.array([0, -5, 7]), np.array([1, 5, 9]), (3,), np.int64),
    "bytes with a bit": spaces.Box(np.array([0, 0]), np.array([1, 255]), (2,), np.uint8),
    "image": spaces.Box(3, 9, (4, 4, 3), np.uint8),
}


@pytest.mark.parametrize("is_part", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("space", WHOLE.values(), ids=WHOLE)
def test_whole_numbers_are_scaled_by_their_bounds(space, dtype, is_part):
    """(x - low) / (high - low), in Python's own numbers; alike as a part of a Dict, and for the running statistics."""
    low, high = ([int(bound) for bound in bounds.flatten()] for bounds in (space.low, space.high))
    numbers = [low, high] + [[a + k * (b - a) // 7 for a, b in zip(low, high, strict=True)] for k in range(7)]
    expected = [[(x - a) / (b - a) for x, a, b in zip(each, low, high, strict=True)] for each in numbers]
    samples = [np.array(each, space.dtype).reshape(space.shape) for each in numbers]
    if is_part:
        space, samples = spaces.Dict(part=space), [{"part": each} for each in samples]
    encoder, batch = Encoder(observation_spec(space)), packed(space, samples)
    got = encoder(batch, dtype)
    np.testing.assert_allclose(got.numpy(), np.array(expected), rtol=1e-6, atol=1e-6)
    assert torch.equal(encoder.boxes(batch, dtype), got)
    assert not encoder.state_dict()


def test_bits_are_the_same_features_in_any_type():
    bits = np.random.default_rng(0).integers(0, 2, (9, 5))
    features = [
        Encoder(observation_spec(spaces.Box(0, 1, (5,), dtype)))(torch.from_numpy(bits.astype(dtype)), torch.float32)
        for dtype in ("bool", "uint8", "int8", "int32", "int64", "float32", "float64")
    ]
    assert all(torch.equal(each, features[0]) for each in features)


def test_bytes_are_scaled_as_ever():
    """To the last bit."""
    obs = torch.arange(256, dtype=torch.uint8)[None]
    got = Encoder(observation_spec(spaces.Box(0, 255, (256,), np.uint8)))(obs, torch.float32)
    assert torch.equal(got, obs.float() * (1 / 255))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_the_limits_of_a_type_are_no_bounds(dtype):
    """Counters are declared so, and would all be nearly the same."""
    encoder = Encoder(observation_spec(spaces.Box(np.iinfo(dtype).min, np.iinfo(dtype).max, (3,), dtype)))
    assert encoder(torch.tensor([[0, 1, 2]]), torch.float32).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("obs", [[-128, 127], [0, 3]])
def test_numbers_beyond_their_bounds_go_on_beyond_0_and_1(obs):
    encoder = Encoder(observation_spec(spaces.Box(np.array([0, 3]), np.array([2, 3]), (2,), np.int8)))
    got = encoder(torch.tensor([obs], dtype=torch.int8), torch.float32)
    assert got.tolist() == [[obs[0] / 2, obs[1] - 3]]


@pytest.mark.parametrize("layout", [(3, 40, 36), (40, 36, 3)])
@pytest.mark.parametrize("name", ["nature", "impala", "small"])
def test_images_are_scaled_by_their_bounds_too(name, layout):
    """A binary image is to a network what a black and white one is; also with bounds of their own for each pixel."""
    torch.manual_seed(0)
    bytes_, bits = image_encoder(layout, name), image_encoder(layout, name, most=1)
    high = np.random.default_rng(0).integers(1, 255, layout).astype(np.uint8)
    own = Encoder(observation_spec(spaces.Box(np.zeros(layout, np.uint8), high, layout, np.uint8)), name)
    for each in (bits, own):
        each.load_state_dict(bytes_.state_dict())
    images = torch.randint(0, 2, (5, *layout), dtype=torch.uint8)
    expected = bytes_(images * 255, torch.float32)
    torch.testing.assert_close(bits(images, torch.float32), expected)
    torch.testing.assert_close(own(images * torch.from_numpy(high), torch.float32), expected)
    with torch.no_grad():
        torch.testing.assert_close(bits(images, torch.float32), expected)


def test_a_mask_is_not_scaled():
    """Its zeros are what is impossible."""
    parts = {"action_mask": spaces.Box(-1, 1, (3,), np.int8), "bits": spaces.Box(-1, 1, (2,), np.int8)}
    encoder = Encoder(observation_spec(spaces.Dict(parts)), num_choices=3)
    obs = {"action_mask": np.array([0, 1, 0], np.int8), "bits": np.array([0, 1], np.int8)}
    assert encoder(packed(spaces.Dict(parts), [obs]), torch.float32).tolist() == [[0.5, 1, 0, 1, 0]]


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
        torch.testing.assert_close(encoder(images, dtype), expected)  # rows are padded: other last bits


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


@pytest.mark.parametrize(
    "env_id", ["tests.fixtures.nested_envs:Images-v0", "tests.fixtures.nested_envs:ImagesFirst-v0"]
)
def test_an_agent_learns_from_images(tmp_path, env_id):
    """Where the bright half is: chance is 5 of 10."""
    flags = {"num_envs": 8, "num_steps": 32, "total_timesteps": 2560, "update_epochs": 4, "test_episodes": 10}
    config = Config(env_id=env_id, **flags, learning_rate=5e-4, hidden_sizes=(16,), run_dir=str(tmp_path / "run"))
    policy = load_agent(train(config))
    assert evaluate(policy, 10, 0).to_dict()["return_mean"] > 9


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
    config = Config(**FLAGS, encoder="my_encoders:Two", run_dir=str(tmp_path / "run"))
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


def test_a_mask_does_not_go_through_an_encoder_of_ones_own():
    """Also where it is a Box."""
    parts = {"action_mask": spaces.Box(0, 1, (3,), np.int8), "speed": spaces.Box(-1, 1, (2,))}
    encoder = Encoder(observation_spec(spaces.Dict(parts)), "tests.fixtures.nested_envs:Linear", num_choices=3)
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
def test_wrong_encoders_are_refused(tmp_path, mine, name, message):
    with pytest.raises(ConfigError, match=f"^--encoder {name}: {message}$"):
        train(Config(**FLAGS, encoder=name, run_dir=str(tmp_path / "run")))
