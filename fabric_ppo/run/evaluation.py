"""Test episodes of a run: those of its evaluations, and those at its end."""

from __future__ import annotations

import sys

from fabric_ppo.agents.agent import Agent
from fabric_ppo.agents.host import HostCopy
from fabric_ppo.agents.policy import Policy
from fabric_ppo.config import Config
from fabric_ppo.process.console import print_line
from fabric_ppo.process.errors import ConfigError, EnvironmentFault
from fabric_ppo.rollouts.evaluate import TestResult, cut_off_text, evaluate
from fabric_ppo.run.progress import TestProgress

_EVALUATION = 2**31
"""Bit of the seed that is set for an evaluation's episodes, and not for the test's."""


def play_evaluation(config: Config, agent: Agent) -> TestResult:
    """Play the episodes of an evaluation (`--eval-every`); raises as `play_test`."""
    return _play("evaluation", config, agent, config.eval_episodes, config.seed ^ _EVALUATION)


def play_test(config: Config, agent: Agent, video_dir: str) -> TestResult:
    """Play the test episodes at the end of a run.

    Args:
        config: the run's configuration.
        agent: the agent, on any device.
        video_dir: folder for a video of the first episode; empty for none.

    Raises:
        EnvironmentFault: the environment failed, or cannot be made again.
    """
    return _play("test", config, agent, config.test_episodes, config.seed, video_dir)


def _play(name: str, config: Config, agent: Agent, episodes: int, seed: int, video_dir: str = "") -> TestResult:
    """Play episodes; print the progress, and the number of episodes that were cut off.

    It plays on the CPU, as `evaluate` does later, so that both take the same actions.
    """
    limit, progress = config.test_step_limit, TestProgress(name, episodes, not config.quiet)
    try:
        result = evaluate(
            Policy(HostCopy(agent).latest()),
            episodes,
            seed,
            video_dir=video_dir,
            at_once=config.num_envs,
            step_limit=limit,
            report=progress.update,
            info_keys=config.info_keys,
        )
    except ConfigError as error:  # the flags were right: the run has trained with them
        raise EnvironmentFault(f"{name}: {error}") from error
    if result.cut_off:
        print_line(f"warning: {name}: {cut_off_text(result.cut_off, episodes, limit)}", sys.stderr)
    return result
