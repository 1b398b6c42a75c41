"""Stable-Baselines3's PPO on a task given by flags; prints what it counted. Run by its own virtual environment."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import gymnasium
import stable_baselines3
from flags import parse_args
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

WINDOW = 100


class StopAtReturn(BaseCallback):
    """Ends the training, after a rollout, when the mean return of the last 100 episodes reaches a goal.

    Attributes:
        mean: that mean after the last rollout; None before 100 episodes.
    """

    def __init__(self, goal: float) -> None:
        """`goal` may be infinite."""
        super().__init__()
        self._goal = goal
        self.mean: float | None = None
        self._reached = False

    def _on_rollout_end(self) -> None:
        episodes = self.model.ep_info_buffer
        assert episodes is not None
        if len(episodes) == WINDOW:
            self.mean = sum(episode["r"] for episode in episodes) / WINDOW
            self._reached = self.mean >= self._goal

    def _on_step(self) -> bool:
        return not self._reached


def make_envs(given: argparse.Namespace) -> VecEnv:
    """The program's environments: a game `ALE/X-v5` as it has Atari games, of which it skips the frames itself."""
    game, is_game = given.env_id.removeprefix("ALE/"), given.env_id.startswith("ALE/")
    if is_game:
        import ale_py

        gymnasium.register_envs(ale_py)
        without_skip = game.removesuffix("-v5") + "NoFrameskip-v4"
        return VecFrameStack(make_atari_env(without_skip, given.num_envs, seed=given.seed), n_stack=4)
    envs = make_vec_env(given.env_id, given.num_envs, seed=given.seed)
    return VecNormalize(envs, gamma=given.gamma) if given.normalize else envs


def make_model(algorithm: type[OnPolicyAlgorithm], given: argparse.Namespace) -> OnPolicyAlgorithm:
    """The program's PPO (SBX's takes the same arguments), which logs to TensorBoard.

    Its networks are the program's own: two of 64 x 64 with tanh, or those of Mnih et al. for images.
    """
    envs = make_envs(given)
    settings: dict[str, Any] = {"batch_size": given.batch_size, "n_epochs": given.epochs}
    return algorithm(
        "CnnPolicy" if len(envs.observation_space.shape or ()) == 3 else "MlpPolicy",
        envs,
        n_steps=given.num_steps,
        learning_rate=given.learning_rate,
        gamma=given.gamma,
        gae_lambda=given.gae_lambda,
        ent_coef=given.ent_coef,
        clip_range=given.clip_coef,
        tensorboard_log=str(given.log_dir),
        seed=given.seed,
        device="cpu",
        **settings,
    )


def train(model: OnPolicyAlgorithm, given: argparse.Namespace) -> dict[str, Any]:
    """Train; the transitions counted by the program, the seconds and the last mean return."""
    stop = StopAtReturn(given.stop_at_return)
    started = time.perf_counter()
    model.learn(given.total_timesteps, callback=stop)
    seconds = time.perf_counter() - started
    return {"env_steps": model.num_timesteps, "train_seconds": seconds, "return_mean": stop.mean}


def main() -> None:
    """Train, counting the steps of the optimizer."""
    given = parse_args(__doc__)
    model = make_model(stable_baselines3.PPO, given)
    taken = 0

    def count(*_: object) -> None:
        nonlocal taken
        taken += 1

    model.policy.optimizer.register_step_post_hook(count)
    print(json.dumps(train(model, given) | {"gradient_steps": taken}))


if __name__ == "__main__":
    main()
