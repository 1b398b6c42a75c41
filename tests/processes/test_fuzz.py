"""Whatever is on the command line, in a YAML file or in a file of a run: it works, or one line says why it does not.

`FABRIC_PPO_FUZZ` is how much of it is tried, 1 for the full figures (`make fuzz`); a small part, always the same, is
part of the tests.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from fabric_ppo.agents.make import make_agent
from fabric_ppo.agents.policy import load_agent
from fabric_ppo.agents.policy_file import POLICY_FILE, start_from
from fabric_ppo.config import SCRIPT_CONFIGS, Config
from fabric_ppo.envs.gymnasium_env import make_gymnasium_env
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.process.errors import ConfigError, StoppedBySignal, TrainingError, flag
from fabric_ppo.process.files import Checkpoint
from fabric_ppo.run.checkpoint import newest_first
from fabric_ppo.run.resolve import resolve
from fabric_ppo.tools import cli
from fabric_ppo.tools.flags import parse_flags
from tests.fixtures.launching import ROOT, SCRIPTS, clean_environment
from tests.fixtures.processes import PATIENCE

SHARE = float(os.environ.get("FABRIC_PPO_FUZZ", "0.04"))
FLAG_SETS, DAMAGED_FILES, HOSTILE_FILES, PROCESSES = 6000, 1500, 1500, 64
BATCH = 4


def examples(count: int, **more: Any) -> settings:
    """So many examples in full; fresh ones each time, unless it is the small part."""
    common = {
        "max_examples": max(1, math.ceil(count * SHARE)),
        "deadline": timedelta(seconds=PATIENCE),
        "derandomize": SHARE < 1,
        "database": None,
        "phases": [Phase.explicit, Phase.generate, Phase.shrink],
        "suppress_health_check": list(HealthCheck),
        "print_blob": True,
    }
    return settings(**common | more)


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """What is printed meanwhile."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        yield said


def assert_is_one_line(error: ConfigError) -> None:
    text = str(error)
    assert text.strip()
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    assert len(text) < 20_000
    assert "Traceback" not in text


# -- flags

KINDS: dict[str, Any] = {}
for config_type in SCRIPT_CONFIGS.values():
    KINDS |= get_type_hints(config_type)
NASTY = (
    *("", " ", "-", "--", "---", "=", "\n", "a\nb", "\x00", "\x1b[31m", "\u2028", "\udcff", "nan", "inf", "-inf"),
    *("NaN", "1e999", "-1", "0", "-0.0", "1_000", "0x10", "1" * 5000, "9" * 400, "1e-400", "None", "null", "true"),
    *(
        "True",
        "[]",
        "{}",
        "64,64",
        "[64]",
        "64 64",
        "~",
        "*",
        "$HOME",
        "%s",
        "{0}",
        "é",
        "漢字",
        "🦊",
        "../..",
        "a" * 9999,
    ),
    *(
        "CartPole-v1",
        "CartPole",
        "LunarLander-v2",
        "cartpole-v1",
        "CartPole-v99999999999999999999",
        ":",
        ":CartPole-v1",
    ),
    *(
        ".:X-v0",
        "..a:X-v0",
        "os:X-v0",
        "no_such_module:X-v0",
        "a b:X-v0",
        "a..b:X-v0",
        "\x00:X-v0",
        "ns/Env-v0",
        "--seed",
    ),
)
numbers = st.one_of(
    st.integers(-3, 300),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from([10**30, 10**400, 2**32 - 1, 2**32, 2**63, 1e308, 5e-324]),
)
nasty = st.one_of(st.sampled_from(NASTY), st.text(max_size=20), numbers.map(str))


def words_for(name: str) -> st.SearchStrategy[list[str]]:
    """Words that may follow a flag: fitting ones more often than not."""
    kind = KINDS[name]
    if get_origin(kind) is Literal:
        fitting = st.sampled_from(get_args(kind)).map(lambda value: [value])
    elif kind is bool:
        fitting = st.just([])
    elif kind == tuple[int, ...]:
        fitting = st.lists(st.integers(1, 128).map(str), min_size=1, max_size=4)
    elif kind is int:
        fitting = st.integers(1, 5000).map(lambda value: [str(value)])
    elif float in (kind, *get_args(kind)):
        fitting = st.floats(0.001, 1).map(lambda value: [str(value)])
    else:
        fitting = st.sampled_from(["CartPole-v1", "LunarLander-v2", "a", "runs/x"]).map(lambda value: [value])
    return st.one_of(fitting, fitting, fitting, nasty.map(lambda word: [word]), st.lists(nasty, max_size=3))


@st.composite
def one_flag(draw: st.DrawFn) -> list[str]:
    """A flag and its words, written in one of the ways that people write it."""
    name = draw(st.sampled_from(sorted(KINDS)))
    words = draw(words_for(name))
    plain = flag(name)
    form = draw(st.sampled_from(["", "", "", "", "=", "no", "cut", "_", "-", "twice", "case"]))
    written = {
        "no": "--no-" + plain[2:],
        "cut": plain[: draw(st.integers(2, len(plain)))],
        "_": "--" + name,
        "-": plain[1:],
        "case": plain.upper(),
    }.get(form, plain)
    if form == "=":
        return [f"{plain}={' '.join(words)}"]
    return [written, *words] * (2 if form == "twice" else 1)


yaml_scalars = st.one_of(
    st.none(), st.booleans(), numbers, st.sampled_from(NASTY), st.text(max_size=10), st.dates(), st.binary(max_size=9)
)
yaml_values = st.recursive(
    yaml_scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
YAML_TEXTS = (
    *(
        "",
        "[",
        "{",
        "a: b: c",
        "&a [*a]",
        "seed: &a [*a]",
        "seed: !!python/object/apply:os.getcwd []",
        "- 1",
        "? [1]\n: 2",
    ),
    *(
        "seed: 2020-99-99",
        "seed: !!int ''",
        "seed: !!float x",
        "seed: !!timestamp x",
        "[" * 3000,
        "seed: " + "[" * 3000,
    ),
    *("seed: 1\nseed: 2", "num-envs: 2", "1: 2", "gamma: .nan", "gamma: .inf", "gamma: 3e-4", "seed: " + "1" * 5000),
    *("seed: 0o17", "hidden_sizes: [64, [64]]", "hidden_sizes: [64, .nan]", "hidden_sizes: {a: 1}", "<<: {seed: 1}"),
    *(
        "seed: !!set {1}",
        "env_id: !!binary aGk=",
        "hidden_sizes: []",
        "cuda: yes",
        "resume: 1",
        "config: other.yaml",
        "\t",
    ),
    "\n".join(
        ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 40)), "seed: *a39"]
    ),
    "\n".join(["exp_name: &a0 [x, x]", "seed: &a1 [*a0, *a0]"]),
    "seed: " + "".join(f"&b{n} [*b{n + 1}, " for n in range(3)),
)


@st.composite
def yaml_files(draw: st.DrawFn) -> bytes:
    """Flags, fitting or not; now and then damaged, or something else altogether."""
    keys = st.one_of(st.sampled_from(sorted(KINDS)), st.sampled_from(sorted(map(flag, KINDS))), st.text(max_size=8))
    fitting = st.sampled_from([{"seed": 1}, {"gamma": 0.9, "num_envs": 3}, {"hidden_sizes": [8, 8]}])
    values = draw(fitting | st.dictionaries(keys, yaml_values, max_size=4))
    kind = draw(st.sampled_from(["", "", "", "damaged", "text", "any"]))
    if kind == "text":
        return draw(st.sampled_from(YAML_TEXTS)).encode()
    if kind == "any":
        return draw(st.binary(max_size=60))
    try:
        content = yaml.safe_dump(values, allow_unicode=draw(st.booleans())).encode()
    except (yaml.YAMLError, UnicodeEncodeError):
        content = b"seed: 1"
    return draw(damaged(content)) if kind == "damaged" else content


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """`content`, cut, flipped, spliced, overwritten or replaced."""
    how = draw(st.sampled_from(["cut", "flip", "splice", "zeros", "insert", "replace", "twice"]))
    at, other = (draw(st.integers(0, max(len(content) - 1, 0))) for _ in range(2))
    if how == "cut":
        return content[:at]
    if how == "flip" and content:
        return content[:at] + bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) + content[at + 1 :]
    if how == "splice":
        return content[:at] + content[other:]
    if how == "zeros":
        return content[:at] + bytes(len(content) - at)
    if how == "insert":
        return content[:at] + draw(st.binary(min_size=1, max_size=9)) + content[at:]
    if how == "twice":
        return content + content
    return draw(st.binary(max_size=99))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fuzz_") as path:
        yield Path(path)


def parse(script: str, args: list[str]) -> Config | None:
    """What a script makes of a command line; None where it refuses it as it should."""
    status: Any = 0
    with quiet() as said:
        try:
            config = resolve(parse_flags(SCRIPT_CONFIGS[script], args), 2, 2)
        except ConfigError as error:
            assert_is_one_line(error)
            config = None
        except SystemExit as stop:
            status, config = stop.code, None
    assert "Traceback" not in said.getvalue()
    assert status == 0
    return config


@examples(FLAG_SETS)
@given(st.sampled_from(sorted(SCRIPT_CONFIGS)), st.lists(one_flag() | nasty.map(lambda word: [word]), max_size=6))
@example("torch", [["--config", "\x00"]])
@example("torch", [["--config", "."]])
@example("torch", [["--env-id", ".:X-v0"]])
def test_any_command_line_is_a_config_or_one_line(script, flags):
    config = parse(script, [word for words in flags for word in words])
    if config is not None:
        assert resolve(type(config)(**vars(config)), 2, 2) == config


@pytest.mark.parametrize(
    "words",
    [
        *("--num-threads 2000000000", "--num-threads 99999999999999999999", "--hidden-sizes 64 99999999999999999999"),
        *(
            "--num-envs 99999999999 --total-timesteps 99999999999999999",
            "--ent-coef 1e300",
            "--test-episodes 1" + "0" * 20,
        ),
        "--num-steps 1" + "0" * 20 + " --total-timesteps 1" + "0" * 40,
    ],
)
def test_what_no_machine_can_do_is_refused(words):
    assert parse("torch", words.split()) is None


@examples(FLAG_SETS // 3)
@given(st.sampled_from(sorted(SCRIPT_CONFIGS)), yaml_files(), st.lists(one_flag(), max_size=2))
@example("torch", b"seed: 2020-99-99", [])
@example("torch", b"[" * 1500, [])
@example("torch", YAML_TEXTS[-3].encode(), [])
def test_any_yaml_file_is_a_config_or_one_line(folder, script, content, flags):
    (folder / "flags.yaml").write_bytes(content)
    config = parse(script, ["--config", str(folder / "flags.yaml"), *(word for words in flags for word in words)])
    if config is not None:
        assert resolve(type(config)(**vars(config)), 2, 2) == config


class Interrupted(gymnasium.Env):
    """A signal comes while this is being made."""

    def __init__(self):
        raise StoppedBySignal("stopped by SIGTERM")


def test_a_signal_is_never_taken_for_a_fault_of_the_environment():
    gymnasium.register("Interrupted-v0", Interrupted)
    with pytest.raises(StoppedBySignal):
        make_gymnasium_env("Interrupted-v0")


# -- files of a run


class Stateful(gymnasium.Env):
    """Walks on a line, and can say and set where it is."""

    observation_space = gymnasium.spaces.Box(-100, 100, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return np.full(1, self.at, np.float32), {}

    def step(self, action):
        self.at += 1 if action else -1
        return np.full(1, self.at, np.float32), float(self.at), abs(self.at) > 5, False, {}

    def get_state(self) -> bytes:
        return struct.pack("q", self.at)

    def set_state(self, state: bytes) -> None:
        (self.at,) = struct.unpack("q", state)


gymnasium.register("FuzzedState-v0", Stateful, max_episode_steps=30)

TINY = ("--num-steps", "8", "--num-envs", "2", "--update-epochs", "1", "--per-rank-batch-size", "8")
TINY += ("--hidden-sizes", "4", "--test-episodes", "1", "--checkpoint-every", "1", "--num-threads", "1")
ENVS = ("CartPole-v1", "Pendulum-v1", "FuzzedState-v0")


def tiny_config(run_dir: Path, env_id: str, updates: int, *flags: str) -> Config:
    size = ("--total-timesteps", str(16 * updates), "--env-id", env_id)
    return resolve(parse_flags(SCRIPT_CONFIGS["torch"], [*TINY, *size, "--run-dir", str(run_dir), *flags]))


@pytest.fixture(scope="module")
def runs(folder) -> dict[str, Path]:
    """Environment -> folder of a finished run of three updates."""
    made = {}
    for env_id in ENVS:
        made[env_id] = folder / env_id.replace(":", "-")
        with quiet():
            SCRIPTS["torch"].main(tiny_config(made[env_id], env_id, 3))
    return made


@pytest.fixture(scope="module")
def contents(runs) -> dict[str, bytes]:
    return {env_id: next(newest_first(path / "checkpoints")).read_bytes() for env_id, path in runs.items()}


def are_equal(one: Checkpoint, other: Checkpoint) -> bool:
    names = one.tensors.keys()
    return (
        names == other.tensors.keys()
        and dict(one.values) == dict(other.values)
        and all(torch.equal(one.tensors[name], other.tensors[name]) for name in names)
    )


@examples(DAMAGED_FILES)
@given(st.sampled_from(ENVS), st.data())
def test_a_damaged_checkpoint_is_refused(contents, env_id, data):
    content = contents[env_id]
    found = data.draw(damaged(content))
    try:
        assert are_equal(Checkpoint.from_bytes(found), Checkpoint.from_bytes(content))
    except ConfigError as error:
        assert_is_one_line(error)


class Touch:
    """A pickle of this makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


MAGIC = b"Fabric PPO checkpoint 1\n"


def sealed(content: bytes) -> bytes:
    """With magic and a checksum that fits."""
    return MAGIC + hashlib.sha256(content).digest() + content


def header(values: str, **tensors: Any) -> bytes:
    """Safetensors' header."""
    text = json.dumps({"__metadata__": {"values": values}, **tensors}).encode()
    return len(text).to_bytes(8, "little") + text


def test_no_pickle_is_ever_executed(folder):
    harmful = pickle.dumps(Touch(folder / "executed"))
    with pytest.raises(ConfigError) as error:
        Checkpoint.from_bytes(harmful)
    assert_is_one_line(error.value)
    with pytest.raises(ConfigError):
        Checkpoint.from_bytes(sealed(harmful))
    with pytest.raises(ConfigError):
        load_file(folder, POLICY_FILE, harmful)
    assert not (folder / "executed").exists()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", bytes(7), bytes(8), b"\xff" * 8, (2**63).to_bytes(8, "little"), (2**40).to_bytes(8, "little") + b"{}"),
        header("{}", x={"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}),
        header("{}", x={"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 0]}),
        header("{}", x={"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}),
        header("{}", x={"dtype": "NONE", "shape": [0], "data_offsets": [0, 0]}),
        header("{}", x={"dtype": "F8_E8M0", "shape": [0], "data_offsets": [0, 0]}),
        *(
            header("["),
            header("[" * 100_000),
            header("null"),
            header("[1]"),
            header("1" * 5000),
            header('{"a": 1e999}'),
        ),
        *(header("NaN"), b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{}", header("{}")[:-3]),
    ],
    ids=lambda content: content[-12:].hex() or "nothing",
)
def test_a_hostile_container_is_refused_or_no_checkpoint(content, runs, folder):
    try:
        Checkpoint.from_bytes(sealed(content))
    except ConfigError as error:
        assert_is_one_line(error)
    assert resume(folder, runs["CartPole-v1"], "CartPole-v1", sealed(content)) is None


hostile_values = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.sampled_from([2**70, -(2**70), 10**400, 1e308, -1.5]),
    st.sampled_from([math.nan, math.inf, "", "x", [], {}, ["x"], [math.nan], [[]], {"x": 1}, [2**70], "é\n"]),
)  # fmt: skip
DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int64,
    torch.int32,
    torch.bool,
)


@st.composite
def another_tensor(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    """Of another shape, type or content."""
    how = draw(st.sampled_from(["nan", "inf", "shape", "cut", "grow", "dtype", "number", "empty", "scalar"]))
    if how in ("nan", "inf") and tensor.numel():
        changed = tensor.clone().float()
        changed.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = float(how)
        return changed.to(tensor.dtype) if tensor.is_floating_point() else changed
    if how == "shape":
        return tensor.reshape(-1) if tensor.ndim != 1 else tensor.reshape(1, -1)
    if how == "cut" and tensor.ndim:
        return tensor[: draw(st.integers(0, len(tensor)))].clone()
    if how == "grow" and tensor.ndim:
        return torch.cat([tensor, tensor])
    if how == "dtype":
        return tensor.to(draw(st.sampled_from(DTYPES)))
    if how == "number":
        number = draw(st.sampled_from([0, -1, 1, 255, 2**31, -(2**31), 2**62, -(2**62)]))
        return torch.full_like(tensor.double(), number).to(tensor.dtype)
    return torch.zeros(()) if how == "scalar" else torch.zeros(0)


@st.composite
def hostile(draw: st.DrawFn, content: bytes) -> bytes:
    """A checkpoint that is whole, but was never written by this program."""
    original = Checkpoint.from_bytes(content)
    tensors, values = dict(original.tensors), json.loads(json.dumps(dict(original.values)))
    for _ in range(draw(st.integers(1, 2))):
        where = draw(st.sampled_from(["value", "value", "tensor", "tensor", "less", "more", "config", "swap"]))
        if where == "value":
            values[draw(st.sampled_from(sorted(values)))] = draw(hostile_values)
        elif where == "config" and isinstance(values.get("config"), dict):
            values["config"][draw(st.sampled_from(sorted(values["config"]) or ["seed"]))] = draw(hostile_values)
        elif where == "tensor":
            name = draw(st.sampled_from(sorted(tensors)))
            tensors[name] = draw(another_tensor(tensors[name]))
        elif where == "swap":
            one, other = (draw(st.sampled_from(sorted(tensors))) for _ in range(2))
            tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()
        elif where == "less":
            dictionary = draw(st.sampled_from([tensors, values]))
            dictionary.pop(draw(st.sampled_from(sorted(dictionary))))
        else:
            name = draw(
                st.sampled_from(["weights.x", "optimizer.0.x", "optimizer.x.exp_avg", "env.x", "in_flight.x", "x"])
            )
            tensors[name] = torch.zeros(draw(st.integers(0, 3)))
    return sealed(save({name: each.contiguous() for name, each in tensors.items()}, {"values": json.dumps(values)}))


def resume(folder: Path, run_dir: Path, env_id: str, content: bytes, **files: bytes) -> Any:
    """Go on for one update from such a checkpoint; the summary, or None where it is refused as it should be.

    Numbers that are finite but out of all reason may also end in the error for a training that diverged.
    """
    copy = folder / "resumed"
    shutil.rmtree(copy, ignore_errors=True)
    (copy / "checkpoints").mkdir(parents=True)
    (copy / "checkpoints/update_3.ckpt").write_bytes(content)
    shutil.copy(run_dir / "metrics.jsonl", copy)
    for name, damage in files.items():
        (copy / name.replace("__", ".")).write_bytes(damage)
    with quiet() as said:
        try:
            summary = SCRIPTS["torch"].main(tiny_config(copy, env_id, 4, "--resume"))
        except ConfigError as error:
            assert_is_one_line(error)
            summary = None
        except TrainingError as error:
            assert "not finite" in str(error)  # noqa: PT017
            summary = None
    assert "Traceback" not in said.getvalue()
    return summary


@examples(HOSTILE_FILES)
@given(st.sampled_from(ENVS), st.data())
def test_a_hostile_checkpoint_is_refused_or_goes_on(runs, contents, folder, env_id, data):
    content = data.draw(hostile(contents[env_id]))
    summary = resume(folder, runs[env_id], env_id, content)
    if summary is not None:
        assert summary.updates == 4
        policy = load_agent(folder / "resumed")
        assert np.isfinite(policy.value(np.zeros(policy.spec.observation.shape, policy.spec.observation.dtype)))
        json.dumps(dataclasses.asdict(summary), allow_nan=False)


def test_an_undamaged_checkpoint_goes_on(runs, contents, folder):
    for env_id in ENVS:
        summary = resume(folder, runs[env_id], env_id, contents[env_id])
        assert (summary.updates, summary.exact_resume) == (4, True)


@pytest.mark.parametrize("group", ["weights", "optimizer"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(runs, contents, folder, group, number):
    original = Checkpoint.from_bytes(contents["CartPole-v1"])
    for name in [name for name in original.tensors if name.startswith(f"{group}.")]:
        tensors = {key: tensor.clone() for key, tensor in original.tensors.items()}
        tensors[name].view(-1)[-1] = number
        content = Checkpoint(tensors, original.values).to_bytes()
        assert resume(folder, runs["CartPole-v1"], "CartPole-v1", content) is None


@examples(DAMAGED_FILES // 5)
@given(st.data())
def test_damaged_metrics_and_events_do_not_stop_a_run(runs, contents, folder, data):
    """They are cut back to the checkpoint as far as they can be read."""
    run_dir = runs["CartPole-v1"]
    name = data.draw(st.sampled_from(["metrics.jsonl", "events.out.tfevents.1.x"]))
    source = next(run_dir.glob(name[:20] + "*")).read_bytes()
    found = data.draw(damaged(source))
    summary = resume(folder, run_dir, "CartPole-v1", contents["CartPole-v1"], **{name.replace(".", "__"): found})
    assert summary is not None
    assert summary.exact_resume
    for line in (folder / "resumed/metrics.jsonl").read_text().splitlines():
        json.loads(line)


def load_file(folder: Path, name: str, content: bytes) -> Any:
    (folder / "policy").mkdir(exist_ok=True)
    (folder / "policy" / name).write_bytes(content)
    return load_agent(folder / "policy")


@examples(DAMAGED_FILES // 5)
@given(st.sampled_from(ENVS), st.data())
def test_a_damaged_policy_is_loaded_or_refused(runs, folder, env_id, data):
    found = data.draw(damaged((runs[env_id] / POLICY_FILE).read_bytes()))
    try:
        load_file(folder, POLICY_FILE, found)
    except ConfigError as error:
        assert_is_one_line(error)


def begin_from(folder: Path, env_id: str, name: str, content: bytes) -> Any:
    """The agent that `--init-from` such a file gives; None where it is refused as it should be."""
    path = folder / "first" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    source = path if name.endswith(".ckpt") else path.parent
    env = make_gymnasium_env(env_id)
    config = tiny_config(folder / "begun", env_id, 1, "--init-from", str(source))
    spec = env_spec(env_id, env.observation_space, env.action_space, config.action_bounds)
    agent = make_agent(spec, config)
    try:
        start_from(agent, str(source))
        return agent
    except ConfigError as error:
        assert_is_one_line(error)
        assert f"--init-from {source}: " in str(error)  # noqa: PT017
        return None


@examples(DAMAGED_FILES // 5)
@given(st.sampled_from(ENVS), st.sampled_from([POLICY_FILE, "x.ckpt"]), st.data())
def test_a_start_from_a_damaged_or_hostile_file_is_finite_or_refused(runs, contents, folder, env_id, name, data):
    content = contents[env_id] if name == "x.ckpt" else (runs[env_id] / POLICY_FILE).read_bytes()
    assert begin_from(folder, env_id, name, content) is not None
    kind = hostile if name == "x.ckpt" and data.draw(st.booleans()) else damaged
    agent = begin_from(folder, env_id, name, data.draw(kind(content)))
    if agent is not None:
        assert all(tensor.isfinite().all() for tensor in agent.state_dict().values())


def a_policy(run_dir: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """A policy's metadata and weights."""
    with safe_open(run_dir / POLICY_FILE, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("what", ["less", "more", "shape", "type", "nan", "inf"])
def test_weights_that_do_not_fit_are_refused(runs, folder, what):
    """As a policy, and as the start of a training."""
    metadata, weights = a_policy(runs["CartPole-v1"])
    name, bias = "value.0.bias", weights["value.0.bias"]
    changes = {"shape": torch.zeros(7), "type": bias.long(), "nan": bias * math.nan, "inf": bias + math.inf}
    weights = {**weights, name: changes[what]} if what in changes else weights
    if what == "less":
        del weights[name]
    if what == "more":
        weights["other"] = bias.clone()
    content = save(weights, metadata)
    assert begin_from(folder, "CartPole-v1", POLICY_FILE, content) is None
    with pytest.raises(ConfigError) as error:
        load_file(folder, POLICY_FILE, content)
    assert_is_one_line(error.value)


def test_a_file_that_claims_a_size_takes_no_memory(runs, folder):
    """A layer of forty million million weights is refused before it is made."""
    metadata, weights = a_policy(runs["CartPole-v1"])
    agent = json.loads(metadata["agent"]) | {"hidden_sizes": [10**13]}
    with pytest.raises(ConfigError, match="has another type or shape"):
        load_file(folder, POLICY_FILE, save(weights, metadata | {"agent": json.dumps(agent)}))


@pytest.mark.parametrize("where", ["env_id", "wrapper", "encoder"])
def test_evaluate_imports_nothing_that_a_file_names(runs, folder, where, tmp_path, monkeypatch, capsys):
    """Unless that is asked for."""
    (tmp_path / "trap.py").write_text("open('executed', 'w').close()")
    metadata, weights = a_policy(runs["CartPole-v1"])
    key = "agent" if where == "encoder" else "env_spec"
    values = json.loads(metadata[key]) | {where: "trap:Trap-v0"}
    (tmp_path / POLICY_FILE).write_bytes(save(weights, metadata | {key: json.dumps(values)}))
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("trap", None)
    assert cli.main(["evaluate", ".", "--episodes", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "trap" in line
    assert "--own-code" in line
    assert not Path("executed").exists()
    assert cli.main(["evaluate", ".", "--episodes", "1", "--own-code"]) == 2
    assert Path("executed").exists()


@pytest.mark.parametrize("place", ["--run-dir", "--log-dir"])
@pytest.mark.parametrize("name", ["/proc/x", "/dev/null", "/dev/null/x", "a" * 300, "a/" * 3000, "/sys"], ids=range(6))
@pytest.mark.parametrize("resumes", [False, True])
def test_a_folder_that_cannot_be_made_is_one_line(place, name, resumes):
    if resumes and place == "--log-dir":
        pytest.skip("resuming takes --run-dir")
    flags = ["--resume"] if resumes else []
    config = resolve(parse_flags(SCRIPT_CONFIGS["torch"], [*TINY, "--total-timesteps", "16", place, name, *flags]))
    with quiet(), pytest.raises(ConfigError) as error:
        SCRIPTS["torch"].main(config)
    assert_is_one_line(error.value)


# -- whole processes

SMALL = (
    "--num-steps",
    "8",
    "--update-epochs",
    "1",
    "--test-episodes",
    "1",
    "--total-timesteps",
    "16",
    "--env-id",
    "CartPole-v1",
)
ENORMOUS = {"num_envs", "num_steps", "total_timesteps", "test_episodes", "update_epochs"}
"""Flags whose larger values are work that was asked for, and no mistake."""


@st.composite
def process_case(draw: st.DrawFn) -> tuple[list[str], str, float]:
    """Flags, what is done to the checkpoint that the process is to resume, and where."""
    damage = draw(st.sampled_from(["", "", "cut", "flip", "pickle", "nothing", "folder"]))
    words: list[str] = []
    for name in draw(st.lists(st.sampled_from(sorted(KINDS.keys() - ENORMOUS)), max_size=3)):
        words += [flag(name), *(word.replace("\x00", "0") for word in draw(words_for(name)))]
    return words if not damage or draw(st.booleans()) else [], damage, draw(st.floats(0, 1, exclude_max=True))


def run_process(folder: Path, case: tuple[list[str], str, float], content: bytes) -> str:
    """What is wrong with how a process ended."""
    words, damage, where = case
    run_dir = Path(tempfile.mkdtemp(dir=folder)) / "run"
    place = ["--run-dir", str(run_dir)]
    if damage:
        (run_dir / "checkpoints").mkdir(parents=True)
        at = int(where * len(content))
        changed = {
            "cut": content[:at],
            "flip": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :],
            "pickle": pickle.dumps(Touch(folder / "executed")),
        }.get(damage, content)
        if damage == "folder":
            (run_dir / "checkpoints/update_3.ckpt").mkdir()
        else:
            (run_dir / "checkpoints/update_3.ckpt").write_bytes(changed)
        words = [*TINY, "--total-timesteps", "64", "--env-id", "CartPole-v1", "--resume", *words]
    args = [sys.executable, str(ROOT / "train_torch.py"), *SMALL[: 0 if damage else None], *words, *place]
    try:
        done = subprocess.run(
            args, cwd=folder, capture_output=True, text=True, errors="replace", timeout=PATIENCE,
            env=clean_environment(), stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"{args}: no end"
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    is_diverged = done.returncode == 1 and len(told) == 1 and "not finite" in told[0]
    as_it_should = done.returncode == 0 or (done.returncode == 2 and len(told) == 1) or is_diverged
    if not as_it_should or "Traceback" in done.stderr:
        return f"{args}: status {done.returncode}, {done.stderr[-3000:]}"
    return ""


@examples(PROCESSES // BATCH, phases=[Phase.generate], deadline=None)
@given(st.lists(process_case(), min_size=BATCH, max_size=BATCH))
def test_whole_processes_end_with_0_or_one_line(contents, folder, cases):
    with concurrent.futures.ThreadPoolExecutor(BATCH) as pool:
        wrong = list(pool.map(run_process, [folder] * BATCH, cases, [contents["CartPole-v1"]] * BATCH))
    assert not (folder / "executed").exists()
    assert not any(wrong), "\n".join(filter(None, wrong))
