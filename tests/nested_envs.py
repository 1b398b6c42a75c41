"""Environments with nested observations and with action masks; `tests.nested_envs:Nested-v0` and so on."""

import copy

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

OBSERVATION = spaces.Dict(
    {
        "b": spaces.Tuple((spaces.Discrete(3, start=5), spaces.MultiBinary(2))),
        "a": spaces.Box(-np.inf, np.inf, (2, 2), np.float32),
        "far": spaces.Dict({"multi": spaces.MultiDiscrete([2, 4]), "big": spaces.Box(-1e9, 1e9, (3,), np.float64)}),
        "bool": spaces.Box(0, 1, (3,), bool),
    }
)


class Linear(torch.nn.Module):
    """An encoder of one's own."""

    num_features = 4

    def __init__(self, space):
        super().__init__()
        self.layer = torch.nn.Linear(space.size, 4, bias=False)

    def forward(self, obs):
        return self.layer(obs.flatten(1).to(self.layer.weight.dtype))


class Nested(gymnasium.Env):
    """Rewards the action that the observation's choice names; five steps to thirteen."""

    action_space = spaces.Discrete(3)

    def __init__(self):
        self.observation_space = copy.deepcopy(OBSERVATION)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.left = int(self.np_random.integers(5, 14))
        return self._observe(), {}

    def _observe(self):
        self.seen = self.observation_space.sample()
        return self.seen

    def step(self, action):
        reward = float(action == self.seen["b"][0] - 5)
        self.left -= 1
        return self._observe(), reward, self.left == 0, False, {}


class Masked(gymnasium.Env):
    """Raises at an action that the mask excludes; earns most with the possible action of the largest number."""

    def __init__(self, where="observation"):
        self.where = where
        box = spaces.Box(-1, 1, (3,), np.float32)
        mask = spaces.MultiBinary(6)
        self.observation_space = spaces.Dict({"observation": box, "action_mask": mask}) if where != "info" else box
        self.action_space = spaces.Discrete(6)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        obs, info = self._observe()
        return obs, info

    def _observe(self):
        self.mask = (self.np_random.random(6) < 0.4).astype(np.int8)
        self.mask[self.np_random.integers(6)] = 1
        obs = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        if self.where == "info":
            return obs, {"action_mask": self.mask}
        return {"observation": obs, "action_mask": self.mask}, {}

    def step(self, action):
        if not self.mask[action]:
            raise ValueError(f"action {action} is impossible: {self.mask}")
        self.steps += 1
        obs, info = self._observe()
        return obs, float(action) / 5, self.steps == 20, False, info


class Images(gymnasium.Env):
    """A bright stripe; rewards the action that names its place."""

    def __init__(self, channels_first=False):
        self.shape = (2, 40, 36) if channels_first else (40, 36, 2)
        self.first = channels_first
        self.observation_space = spaces.Box(0, 255, self.shape, np.uint8)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def _observe(self):
        self.place = int(self.np_random.integers(2))
        image = np.zeros((40, 36, 2), np.uint8)
        image[20 * self.place : 20 * self.place + 20] = 255
        return np.moveaxis(image, -1, 0) if self.first else image

    def step(self, action):
        self.steps += 1
        reward = float(action == self.place)
        return self._observe(), reward, self.steps == 10, False, {}


class Guess(gymnasium.Env):
    """Rewards the action that the observation's first entry names; seven steps."""

    action_space = spaces.Discrete(2)

    def __init__(self, space):
        self.observation_space = copy.deepcopy(space)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.left = 7
        return self._observe(), {}

    def _observe(self):
        self.seen = self.observation_space.sample()
        return self.seen

    def step(self, action):
        reward = float(action == self.seen.flat[0])
        self.left -= 1
        return self._observe(), reward, False, self.left == 0, {}


class Mixed(gymnasium.Env):
    """A small image, numbers of very different size, a choice, and a mask; rewards the action that all of them name."""

    action_space = spaces.Discrete(3)

    def __init__(self):
        self.observation_space = spaces.Dict(
            {
                "camera": spaces.Box(0, 255, (8, 8, 1), np.uint8),
                "action_mask": spaces.Box(0, 1, (3,), np.int8),
                "speed": spaces.Box(-np.inf, np.inf, (2,), np.float64),
                "gear": spaces.Discrete(3),
                "count": spaces.Box(0, 10**6, (1,), np.int32),
            }
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def _observe(self):
        self.place = int(self.np_random.integers(3))
        self.mask = np.ones(3, np.int8)
        self.mask[(self.place + 1) % 3] = 0
        return {
            "camera": np.full((8, 8, 1), 80 * self.place, np.uint8),
            "action_mask": self.mask,
            "speed": np.array([1e4 + 50 * self.place, 1e-3 * self.np_random.normal()]),
            "gear": self.place,
            "count": np.array([1000 * self.steps], np.int32),
        }

    def step(self, action):
        if not self.mask[action]:
            raise ValueError(f"action {action} is impossible: {self.mask}")
        self.steps += 1
        reward = float(action == self.place)
        return self._observe(), reward, self.steps == 9, False, {}


for name, maker, kwargs in (
    ("Mixed-v0", Mixed, {}),
    ("Choices-v0", Guess, {"space": spaces.MultiDiscrete([[2, 3], [4, 2]])}),
    ("Bits-v0", Guess, {"space": spaces.MultiBinary([2, 3])}),
    ("Nested-v0", Nested, {}),
    ("Masked-v0", Masked, {}),
    ("MaskInInfo-v0", Masked, {"where": "info"}),
    ("Images-v0", Images, {}),
    ("ImagesFirst-v0", Images, {"channels_first": True}),
):
    gymnasium.register(name, maker, kwargs=kwargs)
