"""Names of metrics of one's own, beside those that a run logs itself."""

import dataclasses

import pytest
import torch

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


@pytest.mark.parametrize("tag", ["Info/explained_variance", "Loss/value_loss", "Info/grad_norm"])
def test_a_name_of_an_update_is_refused_at_once(tag):
    """Also where this update does not have it: all returns are equal."""
    update = dataclasses.replace(numbers(UpdateStats), return_sum=0.0, return_squares=0.0)
    with pytest.raises(ConfigError, match=f"^the metric {tag}: another name is expected, this one is taken$"):
        update.with_metric(tag, 2.0)


@pytest.mark.parametrize("tag", ["Rewards/rew_avg", "Game/ep_len_avg"])
def test_a_name_of_a_rollout_is_refused_where_no_episode_has_ended(tag):
    update = numbers(UpdateStats).with_metric(tag, 2.0)
    result = UpdateResult(**dict.fromkeys(field.name for field in dataclasses.fields(UpdateResult)))
    rollout = dataclasses.replace(numbers(RolloutStats), num_episodes=0.0)
    with pytest.raises(ConfigError, match="this one is taken"):
        require_own_names(dataclasses.replace(result, rollout=rollout, update=update), [])


@pytest.mark.parametrize("tag", ["step", "update", "", 3, None])
def test_a_name_that_cannot_be_one(tag):
    with pytest.raises(ConfigError, match=r"^the metric .*expected"):
        numbers(UpdateStats).with_metric(tag, 2.0)


def test_a_value_with_a_gradient_is_its_number(recwarn):
    value = torch.ones(1, requires_grad=True) * 2
    assert numbers(UpdateStats).with_metric("Own/x", value).own == {"Own/x": ("mean", 2.0)}
    assert not recwarn.list


def test_any_other_name_will_do():
    check("Game/value_mean")
    check("Info/largest_advantage")
