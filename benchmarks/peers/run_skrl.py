"""skrl's PPO on continuous actions, set up as in its example for Gymnasium; prints what it counted.

As there, observations and, instead of rewards, values are normalised, and it logs to TensorBoard.
"""

from __future__ import annotations

import argparse
from typing import Any

import gymnasium
from counting import count_steps
from flags import parse_args
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import Wrapper, wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import Model
from skrl.resources.preprocessors.torch import RunningStandardScaler
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed
from skrl.utils.model_instantiators.torch import deterministic_model, gaussian_model


def make_models(env: Wrapper) -> dict[str, Model]:
    """Policy and value, two networks of 64 x 64 with tanh."""
    network = [{"name": "net", "input": "OBSERVATIONS", "layers": [64, 64], "activations": "tanh"}]
    spaces: dict[str, Any] = {
        "observation_space": env.observation_space,
        "state_space": env.state_space,
        "action_space": env.action_space,
        "device": env.device,
    }
    return {
        "policy": gaussian_model(**spaces, network=network, output="ACTIONS"),
        "value": deterministic_model(**spaces, network=network, output="ONE"),
    }


def make_settings(given: argparse.Namespace, env: Wrapper) -> PPO_CFG:
    """The task in the program's terms."""
    settings = PPO_CFG(
        rollouts=given.num_steps,
        learning_epochs=given.epochs,
        mini_batches=given.num_envs * given.num_steps // given.batch_size,
        discount_factor=given.gamma,
        gae_lambda=given.gae_lambda,
        learning_rate=given.learning_rate,
        ratio_clip=given.clip_coef,
        value_clip=given.clip_coef,
        entropy_loss_scale=given.ent_coef,
        value_loss_scale=0.5,
        grad_norm_clip=0.5,
    )
    if given.normalize:
        settings.observation_preprocessor = RunningStandardScaler
        settings.observation_preprocessor_kwargs = {"size": env.observation_space, "device": env.device}
        settings.value_preprocessor = RunningStandardScaler
        settings.value_preprocessor_kwargs = {"size": 1, "device": env.device}
    settings.experiment.directory = str(given.log_dir)
    return settings


def main() -> None:
    """Train and print."""
    given, count = parse_args(__doc__), count_steps()
    set_seed(given.seed)
    env = wrap_env(gymnasium.make_vec(given.env_id, num_envs=given.num_envs, vectorization_mode="sync"))
    agent = PPO(
        models=make_models(env),
        memory=RandomMemory(memory_size=given.num_steps, num_envs=env.num_envs, device=env.device),
        cfg=make_settings(given, env),
        observation_space=env.observation_space,
        state_space=env.state_space,
        action_space=env.action_space,
        device=env.device,
    )
    trainer = SequentialTrainer(
        cfg={"timesteps": given.total_timesteps // given.num_envs, "headless": True}, env=env, agents=agent
    )
    trainer.train()
    count.tell()


if __name__ == "__main__":
    main()
