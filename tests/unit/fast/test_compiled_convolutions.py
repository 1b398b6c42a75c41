"""Compiled convolutions give the features and gradients of the plain ones, or leave it to these."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from fabric_ppo.agents.encoders import Encoder, ImageNetwork
from fabric_ppo.envs.frame_stack import with_frames
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.fast import compiled_convolutions
from fabric_ppo.fast.compiled_convolutions import compile_convolutions, compiled_features, convolutions_agree
from fabric_ppo.fast.loss_module import PPOLoss
from fabric_ppo.ppo.batch import blank_rows
from tests.fixtures.agents import random_agent
from tests.fixtures.updates import CONFIG, coefs_of

SHAPES = [(84, 84), (3, 40, 37), (36, 51, 3), (60, 36, 1)]
"""Of a frame: gray, with its channels on the first axis, on the last; sides that no stride divides."""


def spec_of(shape, frames=4, most=255):
    return with_frames(env_spec("Test-v0", spaces.Box(0, most, shape, np.uint8), spaces.Discrete(3)), frames)


def network_of(shape=(84, 84), name="small", frames=4, dtype=torch.float64):
    torch.manual_seed(0)
    (leaf,) = Encoder(spec_of(shape, frames).observation, name)._leaves
    assert isinstance(leaf, ImageNetwork)
    return leaf.to(dtype)


def images_of(shape, frames=4, count=5):
    stack = (frames, *shape) if frames > 1 else shape
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, *stack)).astype(np.uint8))


def gradients(network, features):
    slopes = torch.linspace(-1, 1, features.numel(), dtype=features.dtype).view_as(features).sin()
    return torch.autograd.grad(features, list(network.layers.parameters()), slopes)


def agent_of(encoder="small", shape=(84, 84), most=255, **options):
    return random_agent(spec_of(shape, most=most), encoder=encoder, **options)


def networks_of(agent):
    return [each for each in agent.encoder.modules() if isinstance(each, ImageNetwork)]


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("name", ["small", "nature"])
@pytest.mark.parametrize("shape", SHAPES)
def test_features_and_gradients_are_those_of_pytorch(shape, name, frames):
    if len(shape) + (frames > 1) < 3:
        pytest.skip("an image without channels is none")
    network, images = network_of(shape, name, frames), images_of(shape, frames)
    plain, fast = network.convolve(images), compiled_features(network, images)
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-14)
    for ours, expected in zip(gradients(network, fast), gradients(network, plain), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["small", "nature"])
def test_float32_is_as_near_to_the_exact_features_as_pytorch(name):
    network, images = network_of(name=name, dtype=torch.float32), images_of((84, 84))
    exact = copy.deepcopy(network).double().convolve(images)
    errors = [
        (each - exact).norm() / exact.norm() for each in (compiled_features(network, images), network.convolve(images))
    ]
    assert errors[0] < max(4 * errors[1], 1e-6)


@torch.no_grad()
def test_an_image_has_the_same_bits_in_any_batch_and_thread():
    network, images = network_of(dtype=torch.float32), images_of((84, 84), count=37)
    whole = compiled_features(network, images)
    assert torch.equal(whole, torch.cat([compiled_features(network, each[None]) for each in images]))
    assert torch.equal(whole[:0], compiled_features(network, images[:0]))
    with torch.enable_grad():
        assert torch.equal(whole, compiled_features(network, images))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(whole, compiled_features(network, images))
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
@pytest.mark.parametrize("encoder", ["small", "nature"])
def test_what_an_agent_makes_of_an_image_has_the_same_bits_in_any_batch(encoder):
    """H2: ranks with 8 environments each act as one with 16."""
    agent, images = agent_of(encoder), images_of((84, 84), count=40)
    compile_convolutions(agent)
    whole = agent.inputs(images)
    for count in (1, 7, 8, 24):
        assert torch.equal(agent.inputs(images[:count]), whole[:count])


def test_gradients_of_threads_add_up():
    network, images, threads = network_of(), images_of((84, 84), count=33), torch.get_num_threads()
    expected = gradients(network, network.convolve(images))
    try:
        torch.set_num_threads(3)
        found = [gradients(network, compiled_features(network, images)) for _ in range(2)]
    finally:
        torch.set_num_threads(threads)
    for one, again, plain in zip(*found, expected, strict=True):
        assert torch.equal(one, again)
        torch.testing.assert_close(one, plain, rtol=1e-10, atol=1e-10)


def test_weights_that_are_not_finite_are_seen():
    network = network_of()
    with torch.no_grad():
        network.layers[0].bias[3] = torch.nan
    images = images_of((84, 84), count=1)
    assert torch.equal(compiled_features(network, images).isnan(), network.convolve(images).isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_agent_acts_and_trains_with_them(dtype, monkeypatch):
    agent = agent_of(dtype=dtype)
    rows = blank_rows(agent, 12)._replace(obs=images_of((84, 84), count=12))
    rows = rows._replace(
        weights=torch.full_like(rows.weights, 1 / 12), advantages=torch.linspace(-1, 1, 12, dtype=dtype)
    )
    loss = PPOLoss(agent, CONFIG)
    (expected,) = torch.autograd.grad(loss(rows, coefs_of(CONFIG)).loss, loss.weights.flat)
    values = agent.values(rows.obs)
    compile_convolutions(agent)
    calls = []
    original = compiled_convolutions.compiled_features
    monkeypatch.setattr(
        compiled_convolutions, "compiled_features", lambda *args: (calls.append(args[1].shape[0]), original(*args))[1]
    )
    (found,) = torch.autograd.grad(loss(rows, coefs_of(CONFIG)).loss, loss.weights.flat)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-11}[dtype]
    assert (found - expected).norm() <= tolerance * expected.norm()
    torch.testing.assert_close(agent.values(rows.obs), values)
    torch.testing.assert_close(copy.deepcopy(agent).values(rows.obs), values)
    # compared twice with the first images, then used
    assert calls == [12, 12, 12, 12, 12]


def replace_layer(layer, place=2):
    return lambda network: network.layers.__setitem__(place, layer)


@pytest.mark.parametrize(
    "change",
    [
        replace_layer(nn.Tanh(), 1),
        replace_layer(nn.Conv2d(16, 32, 4, 2, padding=1)),
        replace_layer(nn.Conv2d(16, 30, 4, 2)),
        replace_layer(nn.Conv2d(16, 32, 4, 2, bias=False)),
        replace_layer(nn.Conv2d(16, 32, 5, 2)),
        replace_layer(nn.Conv2d(16, 32, (4, 2), 2)),
        replace_layer(nn.Conv2d(16, 32, 4, 2, groups=2)),
        replace_layer(nn.Conv2d(16, 32, 4, 2, dilation=2)),
        lambda network: network.layers[2].weight.requires_grad_(False),
    ],
)
def test_layers_that_it_does_not_have_stay_plain(change):
    agent = agent_of()
    (network,) = networks_of(agent)
    change(network)
    compile_convolutions(agent)
    assert network.fast_convolve is None


def edit(network, monkeypatch):
    monkeypatch.setattr(compiled_convolutions, "edited", list)


def hook(network, monkeypatch):
    network.layers[0].register_forward_hook(lambda *_: None)


def own_method(network, monkeypatch):
    network.convolve = lambda obs: ImageNetwork.convolve(network, obs)


def other_numbers(network, monkeypatch):
    convolve = ImageNetwork.convolve
    monkeypatch.setattr(compiled_convolutions, "edited", lambda files: [])
    monkeypatch.setattr(ImageNetwork, "convolve", lambda self, obs: 1.001 * convolve(self, obs))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (edit, "edited: agents/encoders.py"),
        (hook, "changed: ImageNetwork"),
        (own_method, "changed: ImageNetwork"),
        (other_numbers, "edited: agents/"),
    ],
)
def test_what_has_changed_is_computed_as_it_is(change, reason, monkeypatch, capsys):
    agent, images = agent_of(), images_of((84, 84))
    (network,) = networks_of(agent)
    change(network, monkeypatch)
    expected = agent.values(images)
    compile_convolutions(agent)
    for _ in range(2):
        assert torch.equal(agent.values(images), expected)
    line = "images follow this code, and not the faster fast/compiled_convolutions.py"
    assert capsys.readouterr().err == f"{reason}; {line}\n"


@pytest.mark.parametrize("options", [{"encoder": "impala"}, {"most": 200}, {"encoder": "flatten"}])
def test_other_encoders_stay_plain(options):
    agent = agent_of(**options)
    compile_convolutions(agent)
    assert all(each.fast_convolve is None for each in networks_of(agent))


def test_mixed_precision_and_recording_stay_plain(monkeypatch):
    agent, images = agent_of(), images_of((84, 84))
    compile_convolutions(agent)
    agent.values(images)
    monkeypatch.setattr(compiled_convolutions, "compiled_features", None)
    with torch.autocast("cpu", torch.bfloat16):
        agent.values(images)
    frozen = agent.requires_grad_(False)
    torch.jit.trace(lambda obs: frozen.values(obs), images, check_trace=False)


def test_a_difference_that_is_more_than_rounding_is_found(monkeypatch):
    network, images = network_of(), images_of((84, 84))
    assert convolutions_agree(network, images)
    original = compiled_convolutions.compiled_features
    monkeypatch.setattr(compiled_convolutions, "compiled_features", lambda *args: original(*args) * (1 + 1e-6))
    assert not convolutions_agree(network, images)
