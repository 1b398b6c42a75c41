"""Flags: their names and defaults, what is refused and how, YAML files, and the counts that follow from them."""

import dataclasses
import sys

import pytest
import yaml

from fabric_ppo.config import Config, TorchConfig
from fabric_ppo.envs.ids import resolve_env_id
from fabric_ppo.process.console import is_rank_zero
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.launch import Launch, read_launch
from fabric_ppo.tools import cli
from fabric_ppo.tools.flags import parse_args, parse_flags

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
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
    "--env-wrapper": None,
    "--env-preset": None,
    "--action-bounds": "rescale",
    "--restart-envs": False,
    "--num-envs": 2,
    "--num-steps": 128,
    "--total-timesteps": 65536,
    "--timestep-unit": "transition",
    "--stop-at-return": None,
    "--share-data": False,
    "--per-rank-batch-size": 64,
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
    "--action-bounds": (["squash"], "squash"),
    "--encoder": (["impala"], "impala"),
    "--init-from": (["runs/a"], "runs/a"),
}
NEEDED = {
    "--resume": {"run_dir": "runs/a"},
    "--restart-envs": {"env_backend": "async"},
    "--env-preset": {"env_id": "ALE/Pong-v5"},
}
"""What a flag cannot do without."""
WITHOUT = {"--desired-kl": "anneal_lr"}
"""Which switch has to be off for a flag."""
SWITCHES = [name for name, value in DEFAULTS.items() if isinstance(value, bool)]


def field(flag):
    return flag.removeprefix("--").replace("-", "_")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """As if started by hand, whatever runs the tests; ids are resolved anew."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    resolve_env_id.cache_clear()


@pytest.fixture
def yaml_file(tmp_path):
    """Write YAML text; its path."""

    def write(text):
        path = tmp_path / "flags.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def refusal(args, config_type=Config):
    """The message of the ConfigError that `args` lead to: one line, printable."""
    with pytest.raises(ConfigError) as caught:
        parse_flags(config_type, args)
    message = str(caught.value)
    assert message.isprintable(), repr(message)
    return message


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


def test_help_tells_every_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_flags(Config, ["--help"], prog="train_fabric.py")
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert "train_fabric.py" in text
    assert all(flag in text for flag in DEFAULTS)
    described = {each.name: each for each in dataclasses.fields(Config)}
    assert len(described) == len(DEFAULTS)
    assert "Discount factor" in text


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
    "--test-episodes",
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
    ("--checkpoint-every", "often", ["whole number"]),
    ("--stop-at-return", "nan", ["finite number"]),
    ("--stop-at-return", "high", ["number"]),
    ("--env-backend", "thread", ["sync", "async"]),
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


def test_cuda_is_never_a_cpu_run(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "--cuda" in refusal(["--cuda"], TorchConfig)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    config = parse_flags(TorchConfig, ["--cuda"])
    config.check_launch(4, on_this_host=2)
    with pytest.raises(ConfigError, match="--cuda: 3 CUDA devices are needed here, 2 found"):
        config.check_launch(3, on_this_host=3)


@pytest.mark.parametrize(
    "values",
    [
        {"num_envs": 0},
        {"num_envs": 2.0},
        {"num_envs": True},
        {"gamma": "0.9"},
        {"gamma": None},
        {"anneal_lr": 1},
        {"hidden_sizes": ()},
        {"hidden_sizes": (64, 1.5)},
        {"hidden_sizes": 64},
        {"env_backend": "thread"},
        {"exp_name": 3},
        {"run_dir": 3},
    ],
    ids=str,
)
def test_a_config_validates_itself_without_a_command_line(values):
    (name,) = values
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        Config(**values)
    with pytest.raises(ConfigError):
        dataclasses.replace(Config(), **values)


def test_numbers_of_python_callers_become_the_fields_types():
    config = Config(gamma=1, stop_at_return=400, hidden_sizes=[8, 4])
    assert (config.gamma, config.stop_at_return, config.hidden_sizes) == (1.0, 400.0, (8, 4))
    assert type(config.gamma) is type(config.stop_at_return) is float


@pytest.mark.parametrize("args", [["--gamma", "7"], ["--total-timesteps", "255"], ["--nun-envs", "1"]])
def test_the_command_line_ends_with_status_2_and_one_line(args, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(Config, args)
    said = capsys.readouterr()
    assert caught.value.code == 2
    assert said.out == ""
    assert said.err.startswith(f"error: {args[0]}")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("precision", ["16", "16-mixed", "16-true", "bf16-true", "transformer-engine"])
def test_a_precision_with_which_nothing_is_learned_is_refused(precision, capsys, monkeypatch):
    assert cli.main(["train", "fabric", "--devices", "2", "--precision", precision]) == 2
    monkeypatch.setenv("LT_PRECISION", precision)
    with pytest.raises(SystemExit):
        parse_args(Config, [])
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"error: --precision {precision}: 32-true, 64-true or bf16-mixed is expected"] * 2


def test_only_rank_0_says_what_is_wrong(capsys, monkeypatch):
    for name, value in zip(NAMES, ("1", "2", "1", "2"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        parse_args(Config, ["--gamma", "7"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == ""


def test_the_length_of_a_run_is_checked_for_all_ranks(capsys, monkeypatch):
    """256 transitions are one update of one rank, none of two."""
    args = ["--total-timesteps", "256"]
    assert parse_args(Config, args).num_updates(1) == 1
    for name, value in zip(NAMES, ("0", "2", "0", "2"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        parse_args(Config, args)
    assert "--total-timesteps 256: at least 512" in capsys.readouterr().err


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


def test_a_runs_own_yaml_gives_the_same_config(yaml_file):
    config = Config(
        exp_name="7", learning_rate=1e-5, adam_eps=1e-8, hidden_sizes=(3, 2), stop_at_return=-1e10, log_dir="1e-3"
    )
    path = yaml_file(yaml.safe_dump(config.to_dict()))
    assert parse_flags(Config, ["--config", path]) == dataclasses.replace(config, config=path)
    assert not {"run_dir", "config", "resume"} & set(config.to_dict())


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
        ("nun_envs: 3", ["--config ", "unknown key nun_envs", "num_envs?"]),
        ("zzzzzzzz: 3", ["--config ", "unknown key zzzzzzzz", "--help"]),
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
    said = capsys.readouterr().err
    assert said == f"--config {path}: ignoring --cuda of another script\n"
    parse_flags(TorchConfig, ["--config", yaml_file("cuda: false")])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("values", "num_ranks", "expected"),
    [
        ({}, 1, 256),  # 65536 / (128 x 2)
        ({}, 4, 64),
        ({"num_envs": 3, "num_steps": 10, "total_timesteps": 100}, 1, 3),
        ({"num_envs": 3, "num_steps": 10, "total_timesteps": 119}, 2, 1),
        ({"num_envs": 3, "num_steps": 10, "total_timesteps": 60}, 2, 1),
        ({"timestep_unit": "iteration"}, 1, 512),  # 65536 / 128
        ({"timestep_unit": "iteration"}, 4, 512),
        ({"num_envs": 3, "num_steps": 10, "total_timesteps": 59, "timestep_unit": "iteration"}, 7, 5),
    ],
)
def test_number_of_updates(values, num_ranks, expected):
    assert Config(**values).num_updates(num_ranks) == expected


@pytest.mark.parametrize(("unit", "needed"), [("transition", 2 * 3 * 10), ("iteration", 10)])
def test_no_update_at_all_is_an_error(unit, needed):
    def updates(total):
        return Config(num_envs=3, num_steps=10, total_timesteps=total, timestep_unit=unit).num_updates(2)

    assert updates(needed) == 1
    with pytest.raises(ConfigError, match=rf"^--total-timesteps {needed - 1}: at least {needed} \(") as caught:
        updates(needed - 1)
    assert "\n" not in str(caught.value)


def test_a_retired_id_resolves_to_its_successor_with_one_line(capsys):
    config = parse_flags(Config, ["--env-id", "LunarLander-v2"])
    said = capsys.readouterr()
    assert config.env_id == config.to_dict()["env_id"] == "LunarLander-v3"
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "LunarLander-v2" in said.err
    assert "LunarLander-v3" in said.err
    assert dataclasses.replace(config, seed=3).env_id == Config(env_id="LunarLander-v2").env_id == "LunarLander-v3"
    assert capsys.readouterr().err == ""


def test_ids_that_run_are_left_alone(capsys):
    for env_id in ("CartPole-v0", "CartPole-v1", "LunarLanderContinuous-v3", "Acrobot-v1"):
        assert parse_flags(Config, ["--env-id", env_id]).env_id == env_id
    assert parse_flags(Config, ["--env-id", "LunarLander"]).env_id == "LunarLander-v3"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("env_id", "nearest"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("cartpole-v1", "CartPole-v1"),
        ("LunarLandr-v2", "LunarLander-v3"),
        ("CartPole-v9", "CartPole-v1"),
    ],
)
def test_an_unknown_id_names_the_nearest(env_id, nearest):
    message = refusal(["--env-id", env_id])
    assert message.startswith(f"--env-id {env_id}: ")
    assert nearest in message


def test_an_id_that_is_like_none():
    assert refusal(["--env-id", "qqqqqqqq"]).startswith("--env-id qqqqqqqq: unknown environment; ")


MODULE = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
gymnasium.register("FromModule-v2", CartPoleEnv)
"""


def test_ids_of_the_users_own_modules(tmp_path, monkeypatch):
    """`module:Env-v0`, the module lying where the user is."""
    (tmp_path / "module_of_the_user.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    env_id = "module_of_the_user:FromModule-v2"
    assert parse_flags(Config, ["--env-id", env_id]).env_id == env_id
    assert "did you mean" in refusal(["--env-id", "module_of_the_user:FromModul-v2"])
    assert "no_such_module" in refusal(["--env-id", "no_such_module:FromModule-v2"]).partition(": ")[2]


def launched(monkeypatch, **values):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_without_a_launcher_there_is_one_process(monkeypatch):
    launched(monkeypatch)
    assert read_launch() == Launch(0, 1, 0, 1)


def test_the_launchers_word(monkeypatch):
    launched(monkeypatch, RANK="5", WORLD_SIZE="8", LOCAL_RANK="1", LOCAL_WORLD_SIZE="4")
    assert read_launch() == Launch(rank=5, world_size=8, local_rank=1, local_world_size=4)
    launched(monkeypatch, RANK="1", WORLD_SIZE="3", LOCAL_RANK="1")
    assert read_launch() == Launch(rank=1, world_size=3, local_rank=1, local_world_size=3)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"RANK": "0"}, ["WORLD_SIZE", "LOCAL_RANK", "not set"]),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["LOCAL_RANK", "not set"]),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, ["RANK", "not set"]),
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, ["RANK=x", "whole numbers"]),
        ({"RANK": "0", "WORLD_SIZE": "", "LOCAL_RANK": "0"}, ["WORLD_SIZE=", "whole numbers"]),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, ["RANK=2", "0 to", "1"]),
        ({"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, ["RANK=-1", "0 to", "1"]),
    ],
)
def test_half_set_variables_are_refused_in_one_line(values, named, monkeypatch):
    launched(monkeypatch, **values)
    with pytest.raises(ConfigError) as caught:
        read_launch()
    message = str(caught.value)
    assert message.startswith("environment variable")
    assert all(part in message for part in named), message
    assert "\n" not in message


def test_a_wrong_local_rank_is_named(monkeypatch):
    launched(monkeypatch, RANK="0", WORLD_SIZE="8", LOCAL_RANK="4", LOCAL_WORLD_SIZE="4")
    with pytest.raises(ConfigError, match="LOCAL_RANK=4"):
        read_launch()


@pytest.mark.parametrize("rank", ["1", "x"])
def test_a_half_set_launch_is_told_whatever_the_rank(rank, capsys, monkeypatch):
    """There is no rank 0 that could say it."""
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as caught:
        parse_args(Config, [])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: environment variable")


def test_rank_zero(monkeypatch):
    assert is_rank_zero()
    monkeypatch.setenv("RANK", "0")
    assert is_rank_zero()
    monkeypatch.setenv("RANK", "1")
    assert not is_rank_zero()


def test_compiling_needs_a_compiler(monkeypatch, tmp_path):
    """Said when the Config is built, in one line, before anything starts."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"^--compile: .*no-such-compiler is not found") as caught:
        Config(compile=True)
    assert "\n" not in str(caught.value)
    compiler = tmp_path / "a-compiler"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(ConfigError, match=r"^--compile: Python's headers are needed"):
        Config(compile=True)
    (tmp_path / "Python.h").touch()
    assert Config(compile=True).compile
