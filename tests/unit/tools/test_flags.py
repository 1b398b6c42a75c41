"""Flags on the command line and in YAML files: names, defaults, and how values are refused."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from fabric_ppo.config import Config, TorchConfig
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.tools.flags import parse_args, parse_flags
from tests.fixtures.flags import LAUNCH_VARIABLES, accepted, refusal

pytestmark = pytest.mark.usefixtures("no_launcher")


DEFAULTS = {
    "--exp-name": "default",
    "--seed": 42,
    "--torch-deterministic": True,
    "--num-threads": 0,
    "--compile": False,
    "--timeout": 300.0,
    "--env-id": "CartPole-v1",
    "--env-backend": "sync",
    "--env-timeout": 60.0,
    "--env-start-method": None,
    "--env-kwargs": None,
    "--env-wrapper": None,
    "--env-preset": None,
    "--obs-keys": None,
    "--critic-keys": None,
    "--frame-stack": 1,
    "--action-bounds": "rescale",
    "--restart-envs": False,
    "--num-envs": 2,
    "--num-steps": 128,
    "--total-timesteps": 65536,
    "--timestep-unit": "transition",
    "--stop-at-return": None,
    "--share-data": False,
    "--per-rank-batch-size": 64,
    "--optimizer": "adam",
    "--optimizer-kwargs": None,
    "--learning-rate": 1e-3,
    "--adam-eps": 1e-5,
    "--anneal-lr": True,
    "--gamma": 0.99,
    "--gae-lambda": 0.95,
    "--update-epochs": 10,
    "--normalize-advantages": True,
    "--normalize-observations": False,
    "--normalize-rewards": False,
    "--target-kl": None,
    "--desired-kl": None,
    "--clip-coef": 0.2,
    "--anneal-clip-coef": False,
    "--clip-vloss": False,
    "--ent-coef": 0.0,
    "--anneal-ent-coef": False,
    "--vf-coef": 0.5,
    "--max-grad-norm": 0.5,
    "--activation-function": "relu",
    "--encoder": "auto",
    "--hidden-sizes": (64, 64),
    "--shared-trunk": False,
    "--layer-norm": False,
    "--recurrent": "none",
    "--recurrent-size": 64,
    "--sequence-length": 16,
    "--log-std-init": 0.0,
    "--state-dependent-std": False,
    "--log-std-min": None,
    "--log-std-max": None,
    "--init-from": None,
    "--ortho-init": False,
    "--capture-video": False,
    "--eval-every": 0,
    "--eval-episodes": 10,
    "--test-episodes": 10,
    "--test-step-limit": 108_000,
    "--track": "tensorboard,jsonl",
    "--track-project": "fabric-ppo",
    "--track-group": None,
    "--track-tags": None,
    "--track-timeout": 60.0,
    "--callback": None,
    "--info-keys": None,
    "--quiet": False,
    "--run-dir": None,
    "--profile": False,
    "--resume": False,
    "--checkpoint-every": 0,
    "--keep-checkpoints": 3,
    "--log-dir": "logs",
    "--config": None,
}


OTHER_WORDS = {str: ["other"], int: ["7"], float: ["0.25"]}


OTHER = {
    "--env-id": (["Pendulum-v1"], "Pendulum-v1"),
    "--env-backend": (["async"], "async"),
    "--timestep-unit": (["iteration"], "iteration"),
    "--activation-function": (["tanh"], "tanh"),
    "--recurrent": (["gru"], "gru"),
    "--hidden-sizes": (["8", "16", "4"], (8, 16, 4)),
    "--stop-at-return": (["-150.5"], -150.5),
    "--target-kl": (["0.02"], 0.02),
    "--desired-kl": (["0.02"], 0.02),
    "--log-std-min": (["-5"], -5.0),
    "--log-std-max": (["0.5"], 0.5),
    "--run-dir": (["runs/a"], "runs/a"),
    "--env-wrapper": (["gymnasium.wrappers:FlattenObservation"], "gymnasium.wrappers:FlattenObservation"),
    "--env-preset": (["atari"], "atari"),
    "--env-start-method": (["spawn"], "spawn"),
    "--obs-keys": (["image,direction"], "image,direction"),
    "--critic-keys": (["state,goal.inner"], "state,goal.inner"),
    "--env-kwargs": (['{"sutton_barto_reward": true}'], '{"sutton_barto_reward": true}'),
    "--action-bounds": (["squash"], "squash"),
    "--encoder": (["impala"], "impala"),
    "--optimizer": (["torch.optim:SGD"], "torch.optim:SGD"),
    "--optimizer-kwargs": (['{"betas": [0.5, 0.9]}'], '{"betas": [0.5, 0.9]}'),
    "--track": (["jsonl", "wandb,trackio"], "jsonl,wandb,trackio"),
    "--track-project": (["mine"], "mine"),
    "--track-group": (["ablation"], "ablation"),
    "--track-tags": (["a", "b,c"], "a,b,c"),
    "--callback": (["gymnasium.wrappers:FlattenObservation"], "gymnasium.wrappers:FlattenObservation"),
    "--info-keys": (["x_position,sum:reward_ctrl"], "x_position,sum:reward_ctrl"),
    "--init-from": (["runs/a"], "runs/a"),
}


NEEDED = {
    "--resume": {"run_dir": "runs/a", "env_id": "CartPole-v1"},
    "--restart-envs": {"env_backend": "async"},
    "--env-start-method": {"env_backend": "async"},
    "--env-preset": {"env_id": "ALE/Pong-v5"},
}
"""Other flags that a flag needs."""


WITHOUT = {"--desired-kl": "anneal_lr"}
"""A switch that has to be off for a flag."""


SWITCHES = [name for name, value in DEFAULTS.items() if isinstance(value, bool)]


def field(flag):
    return flag.removeprefix("--").replace("-", "_")


@pytest.fixture
def yaml_file(tmp_path):
    """Write YAML text; its path."""

    def write(text):
        path = tmp_path / "flags.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_defaults():
    config = parse_flags(Config, [])
    assert {flag: getattr(config, field(flag)) for flag in DEFAULTS} == DEFAULTS
    assert config == Config()
    assert {each.name for each in dataclasses.fields(Config)} == {field(flag) for flag in DEFAULTS}


def test_scripts_add_flags_of_their_own():
    own = {each.name for each in dataclasses.fields(TorchConfig)} - {each.name for each in dataclasses.fields(Config)}
    assert own == {"cuda"}
    assert parse_flags(TorchConfig, []).cuda is False


@pytest.mark.parametrize("flag", [flag for flag in DEFAULTS if flag not in SWITCHES and flag != "--config"])
def test_every_flag_takes_a_value(flag):
    """In each of its spellings; nothing else changes."""
    kind = type(DEFAULTS[flag])
    words, value = OTHER[flag] if flag in OTHER else (OTHER_WORDS[kind], kind(*OTHER_WORDS[kind]))
    spellings = [[flag, *words], ["--" + field(flag), *words]]
    if len(words) == 1:
        spellings.append([f"{flag}={words[0]}"])
    off, needed = [WITHOUT[flag]] if flag in WITHOUT else [], NEEDED.get(flag, {})
    more = [
        *("--no-" + name.replace("_", "-") for name in off),
        *(f"--{name}={value}" for name, value in needed.items()),
    ]
    others = dict.fromkeys(off, False) | needed
    for args in spellings:
        config = parse_flags(Config, [*args, *more])
        assert config == dataclasses.replace(Config(), **others, **{field(flag): value}) != Config()
        assert type(getattr(config, field(flag))) is type(value)


WHOLE = [flag for flag, value in DEFAULTS.items() if type(value) is int]


@pytest.mark.parametrize("flag", WHOLE)
def test_every_count_takes_the_spellings_of_large_numbers(flag, yaml_file):
    """On the command line and in YAML, where some are text and some floats; config.yaml has the plain number."""
    expected = dataclasses.replace(Config(), **{field(flag): 1000})
    for text in ("1000", "1e3", "1_000", "1k", "1K", "0.001M", "1.0e+3"):
        for args in ([flag, text], [f"{flag}={text}"], ["--" + field(flag), text]):
            assert parse_flags(Config, args) == expected
        path = yaml_file(f"{field(flag)}: {text}\n")
        given = parse_flags(Config, ["--config", path])
        assert given == dataclasses.replace(expected, config=path)
        assert type(given.to_dict()[field(flag)]) is int
        assert yaml.safe_load(yaml.safe_dump(given.to_dict()))[field(flag)] == 1000
    for text in ("1.5", "1e-3", "0.0001k", "nan", ".inf", "1e999", "-1e999", "k", "1 k"):
        message = refusal([flag, text])
        assert message.startswith(f"{flag} {text}: ")
        assert "whole number" in message
        message = refusal(["--config", yaml_file(f"{field(flag)}: {text}\n")])
        assert message.startswith(f"{flag} ")
        assert "whole number" in message


def test_widths_take_the_spellings_too(yaml_file):
    assert parse_flags(Config, ["--hidden-sizes", "1k", "5e1", "7"]).hidden_sizes == (1000, 50, 7)
    assert parse_flags(Config, ["--config", yaml_file("hidden_sizes: [1k, 5e1, 7]")]).hidden_sizes == (1000, 50, 7)


def test_what_is_no_count_stays_as_it_is_written():
    """A name, a number with a point, and a value that looks like one."""
    config = parse_flags(Config, ["--exp-name", "1k", "--run-dir", "1e3", "--stop-at-return", "1e3"])
    assert (config.exp_name, config.run_dir, config.stop_at_return) == ("1k", "1e3", 1000.0)


@pytest.mark.parametrize("flag", SWITCHES)
def test_switches_have_a_no(flag):
    needed = [word for name, value in NEEDED.get(flag, {}).items() for word in ("--" + name, value)]
    assert getattr(parse_flags(Config, [flag, *needed]), field(flag)) is True
    assert getattr(parse_flags(Config, ["--no-" + flag[2:], *needed]), field(flag)) is False


@pytest.mark.parametrize(
    ("flag", "needed"), [("--resume", "--run-dir is needed too"), ("--restart-envs", "--env-backend async is needed")]
)
def test_a_switch_that_needs_another_flag_says_so(flag, needed, capsys):
    assert refusal([flag]).startswith(f"{flag}: {needed}")
    with pytest.raises(SystemExit) as caught:
        parse_args(Config, [flag])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {refusal([flag])}\n"
    assert parse_flags(Config, [flag, *(f"--{name}={value}" for name, value in NEEDED[flag].items())])


def test_the_last_word_counts():
    assert parse_flags(Config, ["--seed", "1", "--seed", "2"]).seed == 2


COUNT = ["whole number", "1"]


RATE = ["number above 0"]


UNIT = ["number from 0 to 1"]


WEIGHT = ["number from 0 up"]


COUNTS = (
    "--num-envs",
    "--num-steps",
    "--total-timesteps",
    "--per-rank-batch-size",
    "--update-epochs",
    "--test-step-limit",
    "--keep-checkpoints",
)


WRONG_VALUES = [
    *((flag, value, COUNT) for flag in COUNTS for value in ("0", "-3")),
    ("--num-envs", "1.5", ["whole number"]),
    ("--num-envs", "many", ["whole number"]),
    *(
        (flag, value, RATE)
        for flag in ("--learning-rate", "--adam-eps", "--timeout", "--env-timeout", "--max-grad-norm", "--clip-coef")
        for value in ("0.0", "-1.0", "nan", "inf")
    ),
    *((flag, value, UNIT) for flag in ("--gamma", "--gae-lambda") for value in ("-0.1", "1.01", "nan", "inf")),
    *((flag, value, WEIGHT) for flag in ("--ent-coef", "--vf-coef") for value in ("-0.1", "nan", "inf")),
    ("--gamma", "high", ["number"]),
    ("--learning-rate", "1e-3x", ["number"]),
    ("--seed", "-1", ["whole number", "0", "4294967295"]),
    ("--seed", "4294967296", ["whole number", "0", "4294967295"]),
    ("--seed", "x", ["whole number"]),
    ("--num-threads", "-1", ["whole number", "0"]),
    ("--checkpoint-every", "-1", ["whole number", "0"]),
    ("--test-episodes", "-1", ["whole number", "0"]),
    ("--checkpoint-every", "often", ["whole number"]),
    ("--stop-at-return", "nan", ["finite number"]),
    ("--stop-at-return", "high", ["number"]),
    ("--env-backend", "thread", ["sync", "async"]),
    ("--env-start-method", "thread", ["one of fork, forkserver, spawn, or None"]),
    ("--timestep-unit", "frames", ["transition", "iteration"]),
    ("--activation-function", "gelu", ["relu", "tanh"]),
    ("--hidden-sizes", "0", ["whole numbers from 1"]),
    ("--hidden-sizes", "wide", ["whole numbers"]),
    ("--exp-name", "a/b", ["letters", "digits"]),
    ("--exp-name", "two words", ["letters", "digits"]),
    ("--env-id", "not an id", ["Malformed", "(env-name)-v(version)"]),
]


@pytest.mark.parametrize(("flag", "value", "accepted"), WRONG_VALUES)
def test_a_wrong_value_is_named_with_what_is_accepted(flag, value, accepted):
    message = refusal([flag, value])
    assert message.startswith(f"{flag} {value}: "), message
    assert all(part in message.partition(": ")[2] for part in accepted), message


@pytest.mark.parametrize(("flag", "value"), [("--gamma", "7.0"), ("--gamma", "high"), ("--num-envs", "0")])
def test_the_other_spelling_of_a_wrong_value(flag, value):
    assert refusal([f"{flag}={value}"]) == refusal([flag, value])
    assert refusal(["--seed", "3", f"{flag.replace('m-e', 'm_e')}={value}"]) == refusal([flag, value])


@pytest.mark.parametrize("flag", [flag for flag in DEFAULTS if flag not in SWITCHES])
def test_a_value_that_is_missing(flag):
    for args in ([flag], [flag, "--anneal-lr"]):
        message = refusal(args)
        assert message.startswith(flag)
        assert message.endswith("expected")


@pytest.mark.parametrize("flag", SWITCHES)
def test_a_switch_takes_no_value(flag):
    assert refusal([flag, "False"]).startswith(f"{flag} False: ")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--nun-envs", "3"], ["--nun-envs: unknown flag", "--num-envs?"]),
        (["--learning_rte=0.1"], ["--learning-rte: unknown flag", "--learning-rate?"]),
        (["--no-anneal"], ["--no-anneal: unknown flag", "--no-anneal-lr?"]),
        (["--no-seed"], ["--no-seed: unknown flag"]),
        (["--zzzzzzzzzz"], ["--zzzzzzzzzz: unknown flag", "--help"]),
        (
            ["--cuda"],
            ["--cuda: unknown flag; it is one of train_torch.py and train_fabric_decoupled.py", "--accelerator"],
        ),
        (["--overlap"], ["--overlap: unknown flag; it is one of train_fabric_decoupled.py"]),
        (["3"], ["3", "a flag is expected"]),
        (["-x"], ["-x", "a flag is expected"]),
        (["--seed", "3", "4"], ["--seed 4"]),
    ],
)
def test_unknown_words(args, parts):
    message = refusal(args)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("args", [["--gamma", "7"], ["--total-timesteps", "255"], ["--nun-envs", "1"]])
def test_the_command_line_ends_with_status_2_and_one_line(args, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(Config, args)
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith(f"error: {args[0]}")
    assert printed.err.count("\n") == 1


def test_only_rank_0_prints_what_is_wrong(capsys, monkeypatch):
    for name, value in zip(LAUNCH_VARIABLES, ("1", "2", "1", "2"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        parse_args(Config, ["--gamma", "7"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == ""


def test_the_length_of_a_run_is_checked_for_all_ranks(capsys, monkeypatch):
    """256 transitions are one update of one rank, none of two."""
    args = ["--total-timesteps", "256"]
    assert parse_args(Config, args).num_updates(1) == 1
    for name, value in zip(LAUNCH_VARIABLES, ("0", "2", "0", "2"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        parse_args(Config, args)
    assert "--total-timesteps 256: at least 512" in capsys.readouterr().err


@pytest.mark.parametrize("rank", ["1", "x"])
def test_a_half_set_launch_is_reported_by_every_rank(rank, capsys, monkeypatch):
    """There is no rank 0 that could print it for all."""
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as caught:
        parse_args(Config, [])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: environment variable")


def test_yaml_is_a_start_that_flags_override(yaml_file):
    path = yaml_file("learning-rate: 0.5\nnum_envs: 3\nhidden_sizes: [8]\nanneal_lr: false\nstop_at_return: 400\n")
    from_file = {
        "learning_rate": 0.5,
        "num_envs": 3,
        "hidden_sizes": (8,),
        "anneal_lr": False,
        "stop_at_return": 400.0,
        "config": path,
    }
    assert parse_flags(Config, ["--config", path]) == Config(**from_file)
    assert parse_flags(Config, [f"--config={path}"]) == Config(**from_file)
    args = ["--num-envs", "5", "--anneal-lr", "--config", path, "--hidden-sizes", "4", "4", "--stop-at-return", "None"]
    overridden = {"num_envs": 5, "anneal_lr": True, "hidden_sizes": (4, 4), "stop_at_return": None}
    assert parse_flags(Config, args) == Config(**(from_file | overridden))


def test_a_choice_that_may_be_none_is_read_and_overridden(yaml_file):
    path = yaml_file("env_backend: async\nenv_start_method: spawn")
    given = Config(env_backend="async", env_start_method="spawn", config=path)
    assert parse_flags(Config, ["--config", path]) == given
    for value, args in (("fork", ["--env-start-method=fork"]), (None, ["--env-start-method", "None"])):
        assert parse_flags(Config, ["--config", path, *args]) == dataclasses.replace(given, env_start_method=value)
    assert parse_flags(Config, ["--config", yaml_file("env_start_method: null")]).env_start_method is None


def test_a_runs_own_yaml_gives_the_same_config(yaml_file):
    config = Config(
        exp_name="7", learning_rate=1e-5, adam_eps=1e-8, hidden_sizes=(3, 2), stop_at_return=-1e10, init_from="1e-3"
    )
    path = yaml_file(yaml.safe_dump(config.to_dict()))
    assert parse_flags(Config, ["--config", path]) == dataclasses.replace(config, config=path)
    assert not {"run_dir", "log_dir", "config", "resume"} & set(config.to_dict())


@pytest.mark.parametrize(("text", "value"), [("3e-4", 3e-4), ("1e-3", 1e-3), ("1", 1.0), ("2.5E-4", 2.5e-4)])
def test_numbers_in_yaml_as_people_write_them(yaml_file, text, value):
    """YAML 1.1, which PyYAML reads, takes `3e-4` for text as it has no point."""
    config = parse_flags(Config, ["--config", yaml_file(f"learning_rate: {text}")])
    assert config.learning_rate == value


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("num_envs: 0", ["--num-envs 0: ", "whole number from 1"]),
        ("num_envs: 1.5", ["--num-envs 1.5: ", "whole number"]),
        ("num_envs: many", ["--num-envs many: ", "whole number"]),
        ("num_envs: true", ["--num-envs True: ", "whole number"]),
        ("seed:", ["--seed None: ", "whole number"]),
        ("gamma: [1, 2]", ["--gamma 1 2: ", "number"]),
        ("anneal_lr: 0", ["--anneal-lr 0: ", "true or false"]),
        ("hidden_sizes: [64, wide]", ["--hidden-sizes 64 wide: ", "whole numbers"]),
        ("hidden_sizes: []", ["--hidden-sizes", "whole numbers"]),
        ("env_backend: thread", ["--env-backend thread: ", "sync, async, envpool"]),
        ("env_start_method: thread", ["--env-start-method thread: ", "fork, forkserver, spawn, or None"]),
        ("env_start_method: [spawn]", ["--env-start-method spawn: ", "fork, forkserver, spawn, or None"]),
        ("env_start_method: true", ["--env-start-method True: ", "fork, forkserver, spawn, or None"]),
        ("nun_envs: 3", ["--config ", "unknown key nun_envs", "--num-envs?"]),
        ("zzzzzzzz: 3", ["--config ", "unknown key zzzzzzzz", "--help-all"]),
        ("config: other.yaml", ["--config ", "unknown key config"]),
        ("", ["--config ", "mapping"]),
        ("- 3", ["--config ", "mapping"]),
        ("3: 4", ["--config ", "mapping"]),
        ("num_envs: [3", ["--config ", "cannot be read"]),
    ],
)
def test_wrong_yaml(yaml_file, text, parts):
    message = refusal(["--config", yaml_file(text)])
    assert all(part in message for part in parts), message


def test_a_file_that_cannot_be_read(tmp_path):
    missing = str(tmp_path / "missing.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"seed: \xff\xfe")
    assert refusal(["--config", missing]).startswith(f"--config {missing}: cannot be read (No such file")
    assert "cannot be read" in refusal(["--config", str(tmp_path)])
    assert "cannot be read" in refusal(["--config", str(tmp_path / "bytes.yaml")])


def test_another_scripts_flags_are_ignored_with_a_line(yaml_file, capsys):
    path = yaml_file("cuda: true\nseed: 7")
    config = parse_flags(Config, ["--config", path])
    assert config == Config(seed=7, config=path)
    printed = capsys.readouterr().err
    assert printed == f"--config {path}: ignoring --cuda of another script\n"
    parse_flags(TorchConfig, ["--config", yaml_file("cuda: false")])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "words",
    [
        ["--callback", "a:B,c:D"],
        ["--callback", "a:B", "--callback", "c:D"],
        ["--callback=a:B", "--seed", "7", "--callback", "c:D"],
        ["--callback", "a:B", "--num-envs=3", "--callback=c:D", "--quiet"],
    ],
)
def test_a_callback_may_be_repeated(words):
    assert parse_flags(TorchConfig, words).callback == "a:B,c:D"


def test_callbacks_are_a_list_in_yaml(tmp_path):
    file = tmp_path / "flags.yaml"
    file.write_text("callback: [a:B, 'c:D']\n")
    assert parse_flags(TorchConfig, ["--config", str(file)]).callback == "a:B,c:D"
    file.write_text("callback: [1, 2]\n")
    with pytest.raises(ConfigError, match="--callback 1 2: text is expected"):
        parse_flags(TorchConfig, ["--config", str(file)])


@pytest.mark.parametrize("words", [["--callback"], ["--callback", "--seed", "3"], ["--callback", "a:B", "--callback"]])
def test_a_callback_that_has_no_name_is_refused_in_one_line(words):
    with pytest.raises(ConfigError, match=r"^--callback.*expected$"):
        parse_flags(TorchConfig, words)


def test_the_old_name_of_callback_leads_to_the_new_one(tmp_path):
    with pytest.raises(ConfigError, match=r"^--callbacks: unknown flag; here it is --callback$"):
        parse_flags(TorchConfig, ["--callbacks", "a:B"])
    file = tmp_path / "flags.yaml"
    file.write_text("callbacks: a:B\n")
    with pytest.raises(ConfigError, match=r"unknown key callbacks; here it is --callback$"):
        parse_flags(TorchConfig, ["--config", str(file)])


def test_the_folder_of_an_older_run_goes_on_with_its_callbacks(tmp_path):
    (tmp_path / "config.yaml").write_text("callbacks: a:B\nseed: 3\n")
    config = parse_flags(TorchConfig, ["--resume", "--run-dir", str(tmp_path)])
    assert (config.callback, config.seed) == ("a:B", 3)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--track", "jsonl", "wandb", "--seed", "3"], "jsonl,wandb"),
        (["--track", "jsonl,wandb", "mine:Tracker"], "jsonl,wandb,mine:Tracker"),
        (["--track=jsonl", "--seed", "3", "--track", "wandb"], "jsonl,wandb"),
        (["--track", "jsonl wandb", "mine:Tracker"], "jsonl,wandb,mine:Tracker"),
    ],
)
def test_trackers_are_several_words_or_have_commas_or_the_flag_is_repeated(words, expected):
    assert parse_flags(Config, words).track == expected


def test_trackers_are_a_list_in_yaml(yaml_file):
    config = parse_flags(Config, ["--config", yaml_file("track: [jsonl, wandb]\ntrack_tags: [a, b]\n")])
    assert (config.track, config.track_tags) == ("jsonl,wandb", "a,b")


def test_a_folder_of_an_older_run_has_other_names_for_trackers(tmp_path):
    (tmp_path / "config.yaml").write_text("trackers: tensorboard,json_lines\n")
    assert parse_flags(Config, ["--resume", "--run-dir", str(tmp_path)]).track == "tensorboard,jsonl"
    with pytest.raises(ConfigError, match=r"unknown key trackers; .*--track takes tensorboard, jsonl, wandb"):
        parse_flags(Config, ["--config", str(tmp_path / "config.yaml")])


@pytest.mark.parametrize(
    "words", [["64,32"], ["64, 32"], ["[64,32]"], ["(64, 32)"], ["64", "32"], ["64,", "32"], ["6e1,32"]]
)
@pytest.mark.parametrize("joined", [False, True])
def test_widths_may_have_commas_between_them(words, joined, no_launcher):
    given = [f"--hidden-sizes={words[0]}"] if joined and len(words) == 1 else ["--hidden-sizes", *words]
    first = 60 if "e" in words[0] else 64
    assert tuple(accepted([*given, "--seed", "3"]).hidden_sizes) == (first, 32)


def test_widths_in_a_file_may_be_text(tmp_path, no_launcher):
    (tmp_path / "mine.yaml").write_text("hidden_sizes: 64,32\n")
    assert accepted(["--config", str(tmp_path / "mine.yaml")]).hidden_sizes == (64, 32)


@pytest.mark.parametrize("name", ["learning-rate", "clip-coef", "ent-coef"])
@pytest.mark.parametrize("in_file", [False, True])
def test_a_schedule_of_the_zoo_is_answered_with_ours(name, in_file, tmp_path, no_launcher):
    (tmp_path / "mine.yaml").write_text(f"{name}: lin_3e-4\n")
    message = refusal(["--config", str(tmp_path / "mine.yaml")] if in_file else [f"--{name}", "lin_3e-4"])
    assert message.startswith(f"--{name} lin_3e-4: a number, or a schedule such as linear:1e-3, ")


def test_a_schedule_and_arguments_come_the_same_from_file_and_command_line(tmp_path, no_launcher):
    path = tmp_path / "mine.yaml"
    path.write_text("learning_rate: cosine:1e-3:warmup=0.1\noptimizer: adamw\noptimizer_kwargs: {weight_decay: 0.1}\n")
    words = ["--learning-rate", "cosine:1e-3:warmup=0.1", "--optimizer", "adamw"]
    words += ["--optimizer-kwargs", '{"weight_decay": 0.1}']
    config = accepted(words)
    assert config.to_dict() == accepted(["--config", str(path)]).to_dict()
    assert config.to_dict()["learning_rate"] == "cosine:0.001:warmup=0.1"  # equal ones have one text
    assert config.to_dict()["optimizer_kwargs"] == {"weight_decay": 0.1}
    assert accepted(["--learning-rate", "3e-4"]).learning_rate == 3e-4


def test_a_switch_with_a_value_is_answered_alike(no_launcher):
    for words in (["--anneal-lr", "false"], ["--no-anneal-lr", "true"]):
        assert refusal(words) == f"{' '.join(words)}: --anneal-lr or --no-anneal-lr is expected"


@pytest.mark.parametrize(
    ("text", "line"),
    [("import gymnasium\n\nclass Env:\n    a = {\n", 3), ("seed: 1\nnum_envs: [1, 2\n", 3), ("a: b: c\n", 1)],
)
def test_a_file_that_is_no_yaml_is_named_with_the_line(text, line, tmp_path, no_launcher):
    path = tmp_path / "my_envs.py"
    path.write_text(text)
    message = refusal(["--config", str(path)])
    assert message.startswith(f"--config {path}: cannot be read (line {line}: ")
    assert message.endswith("; a YAML file of flags is expected)")
