"""Images that are stacks of frames: a network sees the frames as channels, wherever an image has its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fabric_ppo.agents.encoders import Encoder
from fabric_ppo.envs.frame_stack import with_frames
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.process.errors import ConfigError
from tests.fixtures.spaces import observation_spec

LEAST = {"nature": 36, "impala": 8, "small": 20}


def stacked_encoder(shape, count, name, most=255):
    spec = env_spec("Test-v0", spaces.Box(0, most, shape, np.uint8), spaces.Discrete(2))
    return Encoder(with_frames(spec, count).observation, name)


def channels_of(stack, shape):
    """A stack `[B, N, *shape]` as images `[B, channels, H, W]`: the oldest frame's channels first."""
    frames = [frame[:, None] if len(shape) == 2 else frame for frame in np.moveaxis(stack, 1, 0)]
    if len(shape) == 3 and shape[2] < shape[0]:
        frames = [np.moveaxis(frame, 3, 1) for frame in frames]
    return np.concatenate(frames, axis=1)


@pytest.mark.parametrize("most", [255, 7])
@pytest.mark.parametrize("name", LEAST)
@pytest.mark.parametrize("count", [2, 4, 30])
@pytest.mark.parametrize("channels", [None, "last", "first"])
def test_frames_are_channels(channels, count, name, most):
    """As of one image with as many channels, also where there are more of these than pixels on a side."""
    sides = (LEAST[name], LEAST[name] + 2)
    shape = {None: sides, "last": (*sides, 3), "first": (3, *sides)}[channels]
    encoder = stacked_encoder(shape, count, name, most)
    assert next(encoder.parameters()).shape[1] == count * (3 if channels else 1)
    stack = np.random.default_rng(0).integers(0, most + 1, (2, count, *shape)).astype(np.uint8)
    (leaf,) = encoder._leaves
    images = torch.from_numpy(channels_of(stack, shape)).float() / most
    expected = leaf.head(leaf.layers(images).flatten(1)).relu()
    torch.testing.assert_close(encoder(torch.from_numpy(stack), torch.float32), expected)
    assert expected.std() > 0


@pytest.mark.parametrize("shape", [(84, 84), (96, 96, 3), (3, 40, 36)])
def test_auto_takes_the_network_for_images_that_are_large_enough(shape):
    assert stacked_encoder(shape, 4, "auto").has_weights
    small = tuple(min(side, 12) for side in shape)
    assert not stacked_encoder(small, 4, "auto").has_weights


@pytest.mark.parametrize("space", [spaces.Box(0, 255, (9,), np.uint8), spaces.Box(-1, 1, (9,)), spaces.Discrete(9)])
def test_what_is_no_image_is_flattened(space):
    spec = with_frames(env_spec("Test-v0", space, spaces.Discrete(2)), 4)
    assert Encoder(spec.observation, "auto").num_features == 4 * 9
    with pytest.raises(ConfigError, match="hold no image of bytes"):
        Encoder(spec.observation, "impala")


def test_a_stack_of_ones_own_stays_what_it_was():
    """Four axes of an environment's own are no frames: an agent that was trained before is the same."""
    assert (
        Encoder(observation_spec(spaces.Box(0, 255, (4, 40, 40, 3), np.uint8)), "auto").num_features == 4 * 40 * 40 * 3
    )
    assert Encoder(observation_spec(spaces.Box(0, 255, (4, 84, 84), np.uint8)), "auto").num_features == 512


def test_choices_and_bits_of_each_frame_are_one_hot():
    for space, width in ((spaces.Discrete(5, start=-2), 5), (spaces.MultiDiscrete([2, 3], start=[1, 0]), 5)):
        spec = with_frames(env_spec("Test-v0", space, spaces.Discrete(2)), 3)
        frames = [space.sample() for _ in range(3)]
        features = Encoder(spec.observation)(torch.from_numpy(np.stack(frames)[None]), torch.float32)
        expected = np.concatenate([spaces.flatten(space, frame) for frame in frames])
        assert features.shape == (1, 3 * width)
        np.testing.assert_array_equal(features[0].numpy(), expected)
