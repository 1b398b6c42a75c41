"""Names of metrics of one's own, beside those that a run logs itself."""

import dataclasses

import pytest

from fabric_ppo.architectures.overlap import PlayerStats
from fabric_ppo.ppo.update import UpdateStats
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.rollouts.buffer import RolloutStats
from fabric_ppo.run.metrics import UpdateResult, require_own_names


def numbers(kind):
    """Metrics that are all 1."""
    names = [each.name for each in dataclasses.fields(kind) if each.default_factory is dataclasses.MISSING]
    return kind(**dict.fromkeys(names, 1.0))


def check(tag):
    update = numbers(UpdateStats).with_metric(tag, 2.0)
    result = UpdateResult(**dict.fromkeys(field.name for field in dataclasses.fields(UpdateResult)))
    result = dataclasses.replace(result, rollout=numbers(RolloutStats), update=update)
    require_own_names(result, [numbers(PlayerStats)])


@pytest.mark.parametrize(
    "tag",
    [
        *("Rewards/rew_avg", "Game/ep_len_avg", "Time/rollout_seconds", "Info/learning_rate", "Time/step_per_second"),
        *("Info/policy_lag", "Eval/return_mean", "Episode/is_success", "Test/cumulative_reward"),
    ],
)
def test_a_name_that_the_run_logs_is_refused(tag):
    """It would be dropped in silence, or stand for both."""
    with pytest.raises(ConfigError, match=f"^the metric {tag}: another name is expected, this one is taken$"):
        check(tag)


def test_any_other_name_will_do():
    check("Game/value_mean")
    check("Info/largest_advantage")
