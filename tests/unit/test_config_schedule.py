"""The text of schedules: what is read, and what is refused in one line."""

from __future__ import annotations

import pytest

from fabric_ppo.config import Config
from fabric_ppo.config_schedule import SCHEDULED, Schedule, flag_schedule, schedule_of
from fabric_ppo.process.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.2, Schedule("constant", 0.2, 0.2)),
        ("constant:0.2", Schedule("constant", 0.2, 0.2)),
        ("linear:0.2", Schedule("linear", 0.2, 0.0)),
        ("linear:0.1:0.2", Schedule("linear", 0.1, 0.2)),
        ("cosine:3e-4:1e-5:warmup=0.05", Schedule("cosine", 3e-4, 1e-5, 0.05)),
        ("constant:1:warmup=0.5", Schedule("constant", 1.0, 1.0, 0.5)),
    ],
)
def test_is_read(value, expected):
    assert schedule_of(value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cosine:1e-3:0:warmup=.10", "cosine:0.001:warmup=0.1"),
        ("linear:1:1e-5", "linear:1.0:1e-05"),
        ("constant:0.2", "constant:0.2"),
    ],
)
def test_equal_schedules_have_one_text(text, expected):
    assert str(schedule_of(text)) == expected
    assert schedule_of(expected) == schedule_of(text)


def test_a_text_that_is_a_number_is_told_apart_from_one():
    with pytest.raises(ConfigError, match=r"^--learning-rate '1e-3': a number, or a schedule"):
        Config(learning_rate="1e-3")


def test_a_number_falls_where_its_flag_says_so():
    assert flag_schedule(Config(), "learning_rate") == Schedule("linear", 1e-3, 0.0)
    config = Config(anneal_lr=False, ent_coef=0.5, anneal_ent_coef=True, clip_coef="cosine:0.3", anneal_clip_coef=True)
    assert [flag_schedule(config, name) for name in SCHEDULED] == [
        Schedule("constant", 1e-3, 1e-3),
        Schedule("cosine", 0.3, 0.0),  # of its own, whatever the other flag says
        Schedule("linear", 0.5, 0.0),
    ]
    assert config.initial_learning_rate == 1e-3
    assert Config(learning_rate="cosine:0.25").initial_learning_rate == 0.25


@pytest.mark.parametrize(
    "text",
    [
        *("", "linear", "linear:", "linear:x", "lin:1e-3", "lin_1e-3", "Linear:1e-3", "linear:1:2:3"),
        *("constant:1:2", "linear:-1", "linear:1:-1", "cosine:inf", "cosine:nan", "cosine:1:nan", "cosine:warmup=0.1"),
        *(
            "cosine:1:warmup=1",
            "cosine:1:warmup=-0.1",
            "cosine:1:warmup=nan",
            "cosine:1:warmup=",
            "warmup=0.1:linear:1",
        ),
    ],
)
def test_what_is_none_is_refused(text):
    for name in SCHEDULED:
        with pytest.raises(ConfigError, match=f"^--{name.replace('_', '-')} {text}: a number, or a schedule such as"):
            Config(**{name: text})


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"learning_rate": "linear:0:1"}, "--learning-rate linear:0:1: a number above 0 is expected"),
        ({"clip_coef": "cosine:0"}, "--clip-coef cosine:0: a number above 0 is expected"),
        ({"ent_coef": "linear:0:1e31"}, r"--ent-coef linear:0:1e31: at most 1e\+30 is expected"),
        ({"desired_kl": 0.01, "anneal_lr": False, "learning_rate": "constant:1e-3"}, "with --desired-kl a number"),
    ],
)
def test_what_does_not_go_with_others_is_refused(flags, said):
    with pytest.raises(ConfigError, match=said):
        Config(**flags)
