"""rejax's PPO, environment, rollout and update in one JAX program; prints what it counted. Run by its own environment.

Seconds of training are those of the compiled program: compiling is in those of the whole process only.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import jax
from flags import parse_args
from rejax import PPO


def make_algorithm(given: argparse.Namespace) -> PPO:
    """Two networks of 64 x 64 with tanh; nothing is evaluated on the way."""
    algorithm = PPO.create(
        env=given.env_id,
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)},
        total_timesteps=given.total_timesteps,
        eval_freq=given.total_timesteps,
        skip_initial_evaluation=True,
        num_envs=given.num_envs,
        num_steps=given.num_steps,
        num_minibatches=given.num_envs * given.num_steps // given.batch_size,
        num_epochs=given.epochs,
        learning_rate=given.learning_rate,
        gamma=given.gamma,
        gae_lambda=given.gae_lambda,
        ent_coef=given.ent_coef,
        clip_eps=given.clip_coef,
        max_grad_norm=0.5,
    )

    def no_evaluation(*_: Any) -> tuple[()]:
        return ()

    return algorithm.replace(eval_callback=no_evaluation)


def main() -> None:
    """Compile, train, and print what the state counted."""
    given = parse_args(__doc__)
    algorithm, key = make_algorithm(given), jax.random.PRNGKey(given.seed)
    train = jax.jit(algorithm.train).lower(key).compile()
    started = time.perf_counter()
    state, _ = jax.block_until_ready(train(key))
    seconds = time.perf_counter() - started
    counted = {"env_steps": int(state.global_step), "gradient_steps": int(state.actor_ts.step)}
    print(json.dumps({**counted, "train_seconds": seconds}))


if __name__ == "__main__":
    main()
