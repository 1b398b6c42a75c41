"""Tianshou's PPO on continuous actions, made of the parts that its example for MuJoCo is made of; prints its counts.

As there, observations are normalised, returns instead of rewards are scaled, and it logs to TensorBoard. Advantages
are computed once in an update, as the other programs do, and not once in an epoch.
"""

from __future__ import annotations

import argparse

import gymnasium
import numpy as np
import torch
from counting import Count, count_calls, count_optimizers
from flags import parse_args
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, ReplayBuffer, VectorReplayBuffer
from tianshou.env import DummyVectorEnv, VectorEnvNormObs
from tianshou.highlevel.logger import LoggerFactoryDefault
from tianshou.trainer import OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
from torch import nn
from torch.distributions import Distribution, Independent, Normal


def gaussian(loc_scale: tuple[torch.Tensor, torch.Tensor]) -> Distribution:
    """The distribution of actions."""
    loc, scale = loc_scale
    return Independent(Normal(loc, scale), 1)


def make_algorithm(given: argparse.Namespace, env: gymnasium.Env) -> PPO:
    """Policy and value, two networks of 64 x 64 with tanh, and the algorithm that trains them."""
    policy_net, value_net = (
        Net(state_shape=env.observation_space.shape, hidden_sizes=[64, 64], activation=nn.Tanh) for _ in range(2)
    )
    actor = ContinuousActorProbabilistic(preprocess_net=policy_net, action_shape=env.action_space.shape, unbounded=True)
    policy = ProbabilisticActorPolicy(
        actor=actor, dist_fn=gaussian, action_scaling=True, action_bound_method="clip", action_space=env.action_space
    )
    return PPO(
        policy=policy,
        critic=ContinuousCritic(preprocess_net=value_net),
        optim=AdamOptimizerFactory(lr=given.learning_rate),
        gamma=given.gamma,
        gae_lambda=given.gae_lambda,
        max_grad_norm=0.5,
        vf_coef=0.25,
        ent_coef=given.ent_coef,
        eps_clip=given.clip_coef,
        value_clip=True,
        return_scaling=given.normalize,
    )


def make_collector(given: argparse.Namespace, algorithm: PPO) -> Collector:
    """The environments, in this process, and a buffer for a rollout."""
    envs = DummyVectorEnv([lambda: gymnasium.make(given.env_id) for _ in range(given.num_envs)])
    envs.seed(given.seed)
    rows = given.num_envs * given.num_steps
    buffer = ReplayBuffer(rows) if given.num_envs == 1 else VectorReplayBuffer(rows, given.num_envs)
    return Collector(algorithm, VectorEnvNormObs(envs) if given.normalize else envs, buffer, exploration_noise=True)


def main() -> None:
    """Train and print; one epoch of the program's trainer is the whole training, and nothing is tested."""
    given, count = parse_args(__doc__), Count()
    count_calls(count, DummyVectorEnv, "step", lambda envs: envs.env_num)
    count_optimizers(count)
    np.random.seed(given.seed)  # noqa: NPY002 (it shuffles its minibatches by this)
    torch.manual_seed(given.seed)
    algorithm = make_algorithm(given, gymnasium.make(given.env_id))
    logger = LoggerFactoryDefault().create_logger(str(given.log_dir), "run", None, vars(given))
    params = OnPolicyTrainerParams(
        training_collector=make_collector(given, algorithm),
        max_epochs=1,
        epoch_num_steps=given.total_timesteps,
        collection_step_num_env_steps=given.num_envs * given.num_steps,
        update_step_num_repetitions=given.epochs,
        batch_size=given.batch_size,
        logger=logger,
    )
    algorithm.run_training(params)
    count.tell()


if __name__ == "__main__":
    main()
