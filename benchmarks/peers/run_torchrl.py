"""TorchRL's PPO on continuous actions, made of the parts that its example for MuJoCo is made of; prints its counts.

Advantages are computed once in an update, as the other programs do, and not once in an epoch. Nothing is logged.
"""

from __future__ import annotations

import argparse

import torch
from counting import Count, count_optimizers
from flags import parse_args
from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
from torchrl.envs import ClipTransform, DoubleToFloat, EnvBase, RewardSum, StepCounter, TransformedEnv, VecNorm
from torchrl.envs.libs.gym import GymEnv
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value.advantages import GAE


def make_env(given: argparse.Namespace) -> EnvBase:
    """One environment with normalised observations."""
    env = TransformedEnv(GymEnv(given.env_id))
    if given.normalize:
        env.append_transform(VecNorm(in_keys=["observation"], decay=0.99999, eps=1e-2))
        env.append_transform(ClipTransform(in_keys=["observation"], low=-10, high=10))
    for transform in (RewardSum(), StepCounter(), DoubleToFloat(in_keys=["observation"])):
        env.append_transform(transform)
    env.set_seed(given.seed)
    return env


def make_networks(env: EnvBase) -> tuple[ProbabilisticActor, ValueOperator]:
    """Policy and value, two networks of 64 x 64 with tanh."""
    space = env.action_spec_unbatched.space
    num_actions = env.action_spec_unbatched.shape[-1]
    sizes = {"in_features": env.observation_spec["observation"].shape[-1], "num_cells": [64, 64]}
    mean = MLP(out_features=num_actions, activation_class=nn.Tanh, **sizes)
    policy = nn.Sequential(mean, AddStateIndependentNormalScale(num_actions, scale_lb=1e-8))
    actor = ProbabilisticActor(
        TensorDictModule(policy, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=env.full_action_spec_unbatched,
        distribution_class=TanhNormal,
        distribution_kwargs={"low": space.low, "high": space.high, "tanh_loc": False},
        return_log_prob=True,
    )
    return actor, ValueOperator(MLP(out_features=1, activation_class=nn.Tanh, **sizes), in_keys=["observation"])


def train(given: argparse.Namespace, count: Count) -> None:
    """Train, and count the rows that the collector gives."""
    env = make_env(given)
    actor, critic = make_networks(env)
    rollout = given.num_steps * given.num_envs
    collector = Collector(env, actor, frames_per_batch=rollout, total_frames=given.total_timesteps)
    rows = TensorDictReplayBuffer(
        storage=LazyTensorStorage(rollout), sampler=SamplerWithoutReplacement(), batch_size=given.batch_size
    )
    advantages = GAE(gamma=given.gamma, lmbda=given.gae_lambda, value_network=critic, average_gae=False)
    loss_fn = ClipPPOLoss(
        actor, critic, clip_epsilon=given.clip_coef, entropy_coeff=given.ent_coef, normalize_advantage=True
    )
    optimizer = torch.optim.Adam(loss_fn.parameters(), lr=given.learning_rate, eps=1e-5)
    count.start()
    for data in collector:
        count.add(data.numel(), 0)
        with torch.no_grad():
            advantages(data)
        for _ in range(given.epochs):
            rows.extend(data.reshape(-1))
            for batch in rows:
                losses = loss_fn(batch)
                optimizer.zero_grad(set_to_none=True)
                (losses["loss_objective"] + losses["loss_entropy"] + losses["loss_critic"]).backward()
                nn.utils.clip_grad_norm_(loss_fn.parameters(), 0.5)
                optimizer.step()
        collector.update_policy_weights_()
    collector.shutdown()


def main() -> None:
    """Train and print."""
    given, count = parse_args(__doc__), Count()
    assert given.num_envs == 1, "its example has one environment"
    torch.manual_seed(given.seed)
    count_optimizers(count)
    train(given, count)
    count.tell()


if __name__ == "__main__":
    main()
