"""README.md and docs/cluster.md: every flag, number and link is true, and every command in them works.

A fenced command is run as it stands, in a folder of its own, with flags appended that make it tiny (the last of a
repeated flag wins). Commands that differ in flags only are run once, with the flags of the longest one; the flags of
the others are parsed. Commands for several hosts are parsed, by their launcher and by the script. A fence or command
of a kind that no check knows fails.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from dataclasses import MISSING, fields, replace
from math import prod
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints
from unittest import mock

import pytest
import torch

from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import SCRIPT_CONFIGS, Config
from fabric_ppo.envs.make import make_envs
from fabric_ppo.fast.loss_module import make_optimizer
from fabric_ppo.ppo.batch import make_batch
from fabric_ppo.ppo.update import Stats
from fabric_ppo.process.errors import flag
from fabric_ppo.process.group import Ranks
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.rollouts.collect import collect
from fabric_ppo.run.run import Run
from fabric_ppo.tools import cli
from fabric_ppo.tools.flags import parse_flags
from fabric_ppo.tools.suite import SUITES
from tests.runs import BIN, ROOT, SCRIPTS, clean_environment, free_port

PAGES = (ROOT / "README.md", ROOT / "docs/cluster.md")
TINY = (
    "--num-steps",
    "16",
    "--num-envs",
    "2",
    "--total-timesteps",
    "128",
    "--update-epochs",
    "1",
    "--test-episodes",
    "1",
)
LANGUAGES = {"sh", "python", "slurm", "text"}
PICTURES = ("docs/lander.gif", "docs/curve.svg")


def fences(language: str) -> list[str]:
    """Contents of all fenced blocks of a language, on all pages."""
    text = "".join(page.read_text() + "\n" for page in PAGES)
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert {name for name, _ in found} <= LANGUAGES, "a fence that nothing here checks"
    assert text.count("```") == 2 * len(found)
    return [content for name, content in found if name == language]


def commands() -> list[list[str]]:
    """Words of every command in a shell block."""
    lines = [line for block in fences("sh") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def split_variables(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """`A=1 program ...` -> `{"A": "1"}, ["program", ...]`."""
    count = next(index for index, word in enumerate(words) if not re.fullmatch(r"[A-Z_]+=.*", word))
    return dict(word.split("=", 1) for word in words[:count]), words[count:]


def kind_of(words: list[str]) -> str:
    """What a command is checked as."""
    _, words = split_variables(words)
    start = " ".join(words[:3])
    if words[0] in ("make", "source", "pip", "diff", "tensorboard", "torchrun"):
        return words[0]
    for begins, kind in (
        ("fabric run", "fabric"),
        ("python train_", "script"),
        ("python -m fabric_ppo", words[3] if len(words) > 3 else ""),
        ("python3 -m venv", "venv"),
    ):
        if start.startswith(begins):
            return kind
    raise AssertionError(f"no check for the command {' '.join(words)}")


def of_kind(*kinds: str) -> list[list[str]]:
    return [words for words in commands() if kind_of(words) in kinds]


def script_of(words: list[str]) -> tuple[str, list[str], list[str]]:
    """`(name of the script, how it is started, its flags)` of a command that trains."""
    _, words = split_variables(words)
    if words[:4] == ["python", "-m", "fabric_ppo", "train"]:
        return words[4], words[:5], words[5:]
    (at,) = (index for index, word in enumerate(words) if re.fullmatch(r"train_\w+\.py", word))
    name = words[at][len("train_") : -len(".py")].removeprefix("fabric_")
    return name, words[: at + 1], words[at + 1 :]


def is_for_several_hosts(words: list[str]) -> bool:
    return any(re.match(r"--(nnodes|num-nodes)\b", word) for word in words)


TRAINING = ("fabric", "torchrun", "script", "train")


def parsed(words: list[str]) -> Namespace:
    """What launcher and script make of a command that trains; fails where they refuse it."""
    name, start, flags = script_of(words)
    if start[0] == "fabric":
        from lightning.fabric.cli import _main

        values = _main.commands["run"].make_context("run", [*start[2:], *flags]).params
        ranks, script, flags = int(values["devices"]) * values["num_nodes"], values["script"], values["script_args"]
        address, port = values["main_address"], values["main_port"]
    elif start[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        values = get_args_parser().parse_args([*start[1:], *flags])
        ranks, script = int(values.nproc_per_node) * int(values.nnodes.split(":")[-1]), values.training_script
        address, port, flags = values.master_addr, values.master_port, values.training_script_args
    elif start[1] == "-m":
        values, flags = cli._launcher_parser(name).parse_known_args(flags)
        ranks, script = values.devices * values.num_nodes, cli._launch_command(name, values)[-1]
        address, port = values.main_address, values.main_port
    else:
        ranks, script, address, port = 1, start[1], None, None
    assert (ROOT / script).is_file()
    with mock.patch("fabric_ppo.config.require_cuda"):
        config = parse_flags(SCRIPT_CONFIGS[name], flags)
        config.check_launch(ranks, ranks)
    return Namespace(name=name, config=config, ranks=ranks, cuda="--cuda" in flags, address=address, port=port)


def table_rows(header: str) -> list[list[str]]:
    """Cells of all tables of README.md that begin with `header`."""
    rows, inside = [], False
    for line in PAGES[0].read_text().splitlines():
        if line.startswith("|"):
            inside = inside or line == header
            if inside and line != header and not re.fullmatch(r"[|-]+", line):
                rows.append([cell.strip() for cell in line.strip("|").split("|")])
        else:
            inside = False
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clone's scripts, to run commands in; they use the package of this one."""
    path = tmp_path_factory.mktemp("readme")
    for script in ROOT.glob("train_*.py"):
        shutil.copy(script, path)
    (path / "docs").mkdir()
    shutil.copytree(ROOT / "configs", path / "configs")
    return path


def environment() -> dict[str, str]:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return clean_environment(PATH=path, PYTHONPATH=str(ROOT), SDL_VIDEODRIVER="dummy", SDL_AUDIODRIVER="dummy")


def run_here(words: list[str], folder: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    variables, words = split_variables(words)
    if words[0] in ("python", "python3"):
        words = [sys.executable, *words[1:]]
    return subprocess.run(
        words, cwd=folder, env=environment() | variables, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="module")
def train(folder):
    """Runs a command that trains, tiny, once: its outcome and the run folder that it made in logs/, if any."""
    outcomes = {}

    def trained(words: list[str]) -> tuple[subprocess.CompletedProcess[str], Path | None]:
        key = tuple(words)
        if key not in outcomes:
            before = {*folder.glob("logs/*/*"), *folder.glob("runs/*")}
            # fabric run's port is always the same one: another test run on this machine may hold it
            port = [f"--main-port={free_port()}"] if words[0] == "fabric" else []
            done = run_here([*words[:2], *port, *words[2:], *TINY], folder)
            made = {*folder.glob("logs/*/*"), *folder.glob("runs/*")} - before
            assert len(made) <= 1
            outcomes[key] = done, next(iter(made), None)
        return outcomes[key]

    return trained


@pytest.fixture(scope="module")
def run_dir(folder, train):
    """A trained agent's folder, made by one of the commands; relative to where they run."""
    done, made = train(next(words for words in of_kind("script") if script_of(words)[0] == "torch"))
    assert done.returncode == 0, done.stderr
    return str(made.relative_to(folder))


def test_every_flag_is_in_the_table_with_its_default():
    shown = {row[0].strip("`"): (row[1], row[2]) for row in table_rows("| flag | default | meaning |")}
    assert len(shown) == len(table_rows("| flag | default | meaning |")), "a flag has two rows"
    configs = SCRIPT_CONFIGS.values()
    kinds = {name: kind for config in configs for name, kind in get_type_hints(config).items()}
    defaults = {field.name: field.default for config in configs for field in fields(config)}
    assert MISSING not in defaults.values()
    assert sorted(shown) == sorted(map(flag, defaults))
    for name, default in defaults.items():
        cell, meaning = shown[flag(name)]
        assert meaning
        if default is None:
            assert cell == "none"
        elif isinstance(default, bool):
            assert cell == ("on" if default else "off"), name
        elif isinstance(default, (int, float)):
            assert float(cell.strip("`")) == default, name
        elif isinstance(default, tuple):
            assert cell == f"`{' '.join(map(str, default))}`", name
        else:
            assert cell == f"`{default}`", name
        if get_origin(kinds[name]) is Literal:
            for choice in get_args(kinds[name]):
                assert f"`{choice}`" in meaning, name


def test_flags_of_some_scripts_only_name_them():
    for row in table_rows("| flag | default | meaning |"):
        name = row[0].strip("`")[2:].replace("-", "_")
        having = {script for script, config in SCRIPT_CONFIGS.items() if name in {each.name for each in fields(config)}}
        named = {script for script, module in SCRIPTS.items() if f"`{Path(module.__file__).name}`" in row[2]}
        assert named == (having if len(having) < len(SCRIPT_CONFIGS) else set()), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        if not link.startswith("https://"):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.is_file(), link
            assert not anchor or anchor in anchors_of(target), link


def anchors_of(page):
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_files_that_are_named_exist():
    for page in PAGES:
        for name in re.findall(
            r"`((?:tests|docs|fabric_ppo)/[\w./-]*|train_\w+\.py|requirements\.txt)`", page.read_text()
        ):
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_figure_is_left_to_be_measured(page):
    assert re.findall(r"@@FIGURE:?[^@]*@*", page.read_text()) == []


def test_the_diff_is_as_explained():
    (words,) = of_kind("diff")
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=20).stdout
    removed, added = (len(re.findall(f"^{sign} ?", said, re.MULTILINE)) for sign in "<>")
    lengths = [len((ROOT / name).read_text().splitlines()) for name in words[1:]]
    text = f"{removed} lines of `{words[1]}` (of {lengths[0]}) and {added} of `{words[2]}` (of {lengths[1]})"
    assert text in PAGES[0].read_text()
    rows = table_rows("| lines about | `train_torch.py` | `train_fabric.py` |")
    assert [sum(int(row[column]) for row in rows) for column in (1, 2)] == [removed, added]


def test_updates_are_counted_as_explained():
    headline = parsed(headline_command("fabric"))
    config, steps = headline.config, headline.config.num_steps * headline.config.num_envs * headline.ranks
    updates = config.num_updates(headline.ranks)
    iterations = replace(config, timestep_unit="iteration").num_updates(headline.ranks)
    text = PAGES[0].read_text()
    assert f"that is {updates} updates and {updates * steps:,} transitions" in text
    assert f"`--timestep-unit iteration` it would make {iterations}." in text


def headline_command(script: str) -> list[str]:
    (words,) = (
        words for words in of_kind("fabric", "torchrun") if script_of(words)[0] == script and "--capture-video" in words
    )
    return words


def test_both_headline_commands_and_make_train_are_the_same_training():
    args = ["make", "-n", "--no-print-directory", "train"]
    env = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "TRAIN_FLAGS")}
    said = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, timeout=20, env=env).stdout
    _, _, flags = script_of(headline_command("fabric"))
    assert script_of(headline_command("torch"))[2] == flags
    assert said.splitlines()[-1].endswith(" ".join(headline_command("fabric")[1:]))


@pytest.mark.parametrize("words", of_kind("make"), ids=" ".join)
def test_make_targets_exist(words, tmp_path):
    variables, words = split_variables(words)
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", "-C", str(ROOT), *words[1:]],
        cwd=tmp_path,
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    last = shlex.split(done.stdout.splitlines()[-1])
    if "train" in words:
        assert parsed(["fabric", *last[last.index("run") :]]).name == "fabric"
    for word in words[1:]:
        if word.startswith("TEST_FLAGS="):
            test = ROOT / word.removeprefix("TEST_FLAGS=")
            assert all(name in test.read_text() for name in variables)


def test_setting_up_by_hand():
    (venv,), (source,), (pip,) = of_kind("venv"), of_kind("source"), of_kind("pip")
    assert source[1] == f"{venv[3]}/bin/activate"
    assert pip[:3] == ["pip", "install", "-r"]
    lines = [line.split("#")[0].strip() for line in (ROOT / pip[3]).read_text().splitlines()]
    assert all(re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.]+(; python_version .*)?", line) for line in lines if line)


@pytest.mark.parametrize("words", of_kind(*TRAINING), ids=" ".join)
def test_commands_that_train_parse(words):
    got = parsed(words)
    assert got.name in SCRIPT_CONFIGS
    if is_for_several_hosts(words):
        assert got.ranks > 1
        assert got.address not in (None, "127.0.0.1")
        assert got.port


def to_run() -> list[list[str]]:
    """Of commands that are the same but for flags, the longest; of `python -m fabric_ppo train`, the raw PyTorch one.

    What the others of those launch is parsed by `test_the_command_line_launches_a_command_of_the_page`.
    """
    longest: dict[tuple[str, ...], list[str]] = {}
    for words in of_kind(*TRAINING):
        if is_for_several_hosts(words) or (kind_of(words) == "train" and script_of(words)[0] != "torch"):
            continue
        key = (*script_of(words)[1], "--cuda" if "--cuda" in words else "")
        longest[key] = max(longest.get(key, []), words, key=len)
    return list(longest.values())


@pytest.mark.parametrize("words", to_run(), ids=" ".join)
def test_commands_that_train_run(words, folder, train):
    wanted = parsed(words)
    done, made = train(words)
    if wanted.cuda and torch.cuda.device_count() < wanted.ranks:
        assert done.returncode != 0
        if torch.cuda.device_count() == 0:  # with some, but too few, `fabric run` refuses in its own words
            assert re.search(r"^error: --cuda: \d+ CUDA devices are needed here, 0 found$", done.stderr, re.MULTILINE)
        assert made is None
        return
    assert done.returncode == 0, done.stderr
    assert str(made.parent.relative_to(folder)) + "/" in PAGES[0].read_text()
    text = (made / "summary.json").read_text()
    assert f'"world_size": {wanted.ranks},' in text
    assert f'"env_id": "{wanted.config.env_id}"' in text
    videos = [next((made / name).glob("*.mp4"), None) for name in ("train_videos", "test_videos")]
    assert all(videos) == wanted.config.capture_video


@pytest.mark.parametrize("words", of_kind("train"), ids=" ".join)
def test_the_command_line_launches_a_command_of_the_page(words, monkeypatch):
    """What `python -m fabric_ppo train` becomes is read by the launcher's parser, and has all the flags."""
    execv = mock.Mock(side_effect=SystemExit)
    monkeypatch.setattr("os.execv", execv)
    _, plain = split_variables(words)
    with pytest.raises(SystemExit):
        cli.main(plain[3:])
    ((_, (_, _, launcher, *rest)),) = (call.args for call in execv.call_args_list)
    start = {"torch.distributed.run": ["torchrun"], "lightning.fabric.cli": ["fabric", "run"]}[launcher]
    at = next(index for index, word in enumerate(rest) if word.endswith(".py"))
    launched = parsed([*start, *rest[:at], Path(rest[at]).name, *rest[at + 1 :]])
    wanted = parsed(words)
    assert (launched.name, launched.config, launched.ranks) == (wanted.name, wanted.config, wanted.ranks)
    if is_for_several_hosts(words):
        assert (launched.address, launched.port) == (wanted.address, wanted.port)


def test_the_run_folder_is_as_listed(folder, run_dir):
    rows = table_rows("| file | content |")
    listed = [name for row in rows if "--capture-video" not in row[1] for name in re.findall(r"`([^`]+)`", row[0])]
    found = sorted(path.name for path in (folder / run_dir).iterdir())
    assert len(found) == len(listed)
    for pattern in listed:
        assert len(list((folder / run_dir).glob(pattern))) == 1
    line = (folder / run_dir / "metrics.jsonl").read_text()
    tags = set(re.findall(r'"([A-Z]\w+/\w+)"', line))
    assert tags
    assert all(f"`{tag}`" in PAGES[0].read_text() for tag in tags)


@pytest.mark.parametrize("words", of_kind("evaluate", "plot"), ids=" ".join)
def test_commands_for_afterwards_run(words, folder, run_dir, monkeypatch, capsys):
    """In this process: `python -m fabric_ppo` is `cli.main`, which another test starts as a process."""
    args = [word.replace("RUN_DIR", run_dir) for word in words[3:]]
    if args[0] == "evaluate":
        args += ["--episodes", "3"]
    monkeypatch.chdir(folder)
    before = set(folder.rglob("*"))
    assert cli.main(args) == 0
    said = capsys.readouterr().out
    if "--json" in args:
        assert said.startswith("{")
    for option in ("--gif", "--out"):
        if option in args:
            assert args[args.index(option) + 1] in PICTURES
            assert (folder / args[args.index(option) + 1]).stat().st_size > 0
    if "--video" in args:
        assert any(path.suffix == ".mp4" for path in set(folder.rglob("*")) - before)


@pytest.mark.parametrize("words", of_kind("benchmark"), ids=" ".join)
def test_suites_are_what_the_page_says(words, monkeypatch):
    run_suite = mock.Mock(return_value=0)
    monkeypatch.setattr("fabric_ppo.suite.run_suite", run_suite)
    assert cli.main(words[3:]) == 0
    assert run_suite.call_args.args[0]
    (listed,) = re.findall(r"^Suites are (.*?)\.", PAGES[0].read_text(), re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", listed)) == set(SUITES)


def test_every_option_of_evaluate_is_listed(capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    has = set(re.findall(r"^  (--[\w-]+)", capsys.readouterr().out, re.MULTILINE))
    rows = table_rows("| option of `evaluate` | meaning |")
    assert {row[0].strip("`").split()[0] for row in rows} == has
    shown = {word for words in of_kind("evaluate") for word in words if word.startswith("--")}
    assert shown == has


def test_python_runs(folder, run_dir, monkeypatch):
    monkeypatch.chdir(folder)
    for block in fences("python"):
        exec(compile(block.replace('"RUN_DIR"', repr(run_dir)), "README.md", "exec"), {})


def test_the_environment_of_ones_own(folder):
    """As the page says: its file, the command that trains in it, the one that evaluates."""
    blocks = [block for block in fences("python") if "gymnasium.register(" in block]
    assert len(blocks) == 2
    (folder / "my_envs.py").write_text("\n".join(blocks))
    text = PAGES[0].read_text()
    (train,) = re.findall(r"`(python train_torch.py --env-id my_envs:[^`]+)`", text)
    (evaluate,) = set(re.findall(r"`(python -m fabric_ppo evaluate RUN_DIR --own-code)`", text))
    done = run_here([*train.split(), *TINY, "--run-dir", "runs/own"], folder)
    assert done.returncode == 0, done.stderr
    done = run_here([*evaluate.replace("RUN_DIR", "runs/own").split(), "--episodes", "2", "--json"], folder)
    assert done.returncode == 0, done.stderr
    assert '"episodes": 2' in done.stdout
    (env_id,) = re.findall(r"`(my_envs:Windy-v0)`", text)
    code = f"import gymnasium; print(gymnasium.make('{env_id}').unwrapped.enable_wind)"
    assert run_here([sys.executable, "-c", code], folder).stdout == "True\n"


def test_tensorboard_finds_the_runs(folder, run_dir):
    """Instead of serving the curves, `--inspect` lists them."""
    (words,) = of_kind("tensorboard")
    said = run_here([*words, "--inspect"], folder)
    assert said.returncode == 0, said.stderr
    assert run_dir in said.stdout
    assert "Loss/policy_loss" in said.stdout


def test_the_job_file(tmp_path):
    (text,) = fences("slurm")
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, timeout=20)
    assert (checked.returncode, checked.stderr) == (0, "")
    options = re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", text, re.MULTILINE)
    assert text.count("#SBATCH") == len(options) + 1
    assert "#SBATCH --requeue\n" in text
    nodes, cores = dict(options)["nodes"], dict(options)["cpus-per-task"]
    (line,) = (line for line in text.splitlines() if line.startswith("srun "))
    task = shlex.split(line)[-1]
    given = {"SLURM_NNODES": nodes, "SLURM_CPUS_PER_TASK": cores, "SLURM_NODEID": "1", "MAIN_ADDRESS": "10.0.0.1"}
    given["SLURM_JOB_ID"] = "7"
    assert set(re.findall(r"\$(\w+)", task)) == set(given)
    assert set(re.findall(r"^export (\w+)", text, re.MULTILINE)) - {"GLOO_SOCKET_IFNAME"} <= set(given)
    for name, value in given.items():
        task = task.replace(f"${name}", value)
    assert parsed(shlex.split(task)).ranks == int(nodes) * int(cores)


class Recorder:
    """Two equal ranks; keeps how many bytes each gave to every all-gather."""

    def __init__(self):
        self.sent = []
        self.ranks = Ranks(0, 2, self.all_gather)

    def all_gather(self, tensor):
        self.sent.append(tensor.nbytes)
        return torch.stack([tensor, tensor])


def test_what_is_sent_is_as_the_formulas_say():
    text = PAGES[1].read_text()
    headline = parsed(headline_command("torch"))
    config, ranks = headline.config, headline.ranks
    envs = make_envs(config, 0, ranks)
    agent = make_agent(envs.spec, config)
    weights = sum(parameter.numel() for parameter in agent.parameters())
    obs = envs.spec.observation
    row = prod(obs.shape) * torch.zeros((), dtype=getattr(torch, obs.dtype)).itemsize
    row += prod(agent.distribution.action_shape) * agent.distribution.action_dtype.itemsize + 5 * 4
    batch = make_batch(
        collect(envs, agent, RolloutBuffer(envs, agent, 8, first_env=0), config.seed, 0),
        replace(config, share_data=True),
        (recorder := Recorder()).ranks,
        0,
        torch.device("cpu"),
    )
    assert recorder.sent == [8 * config.num_envs * row]
    assert batch.num_shares == 2
    rollout = collect(envs, agent, RolloutBuffer(envs, agent, 8, first_env=0), config.seed, 0)
    make_batch(rollout, config, (recorder := Recorder()).ranks, 0, torch.device("cpu"))
    assert recorder.sent == [32]
    envs.close()
    rows = config.num_steps * config.num_envs
    steps = config.update_epochs * -(-rows // config.per_rank_batch_size)
    updates = config.num_updates(ranks)
    assert f"P = {weights} weights" in text
    assert f"G = {steps} gradient steps" in text
    assert f"R = {row} bytes" in text
    assert f"| gradients: {steps} all-reduces of {4 * weights} bytes | {4 * weights * steps} |" in text
    assert f"| rows, with `--share-data` | {rows * row} |" in text
    gigabytes = 4 * weights * steps * updates / 1e9
    assert f"Over the {updates} updates of the run, gradients come to {gigabytes:.2f} GB" in text
    report = report_bytes(config.num_steps, config.num_envs, prod(obs.shape) * 4, 1)
    assert f"| report | {report} |" in text


def reported_bytes(config: Config, folder: Path) -> int:
    """Bytes of the one collective that ends every update, measured."""
    recorder = Recorder()
    stats = Stats(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, (1.0,) * 5, gradient_steps=1, seconds=1.0)
    with Run(config, "torch", recorder.ranks, folder) as run:
        envs = run.closing(make_envs(config, 0, 2))
        agent = make_agent(envs.spec, config)
        buffer = RolloutBuffer(envs, agent, config.num_steps, first_env=0)
        run.restore(agent, make_optimizer(agent, config), buffer)
        recorder.sent = []
        for update in run.updates():
            run.finish_update(collect(envs, agent, buffer, config.seed, update), stats, 0.1)
            (sent,) = recorder.sent
            recorder.sent = []
    assert run.env_steps == config.total_timesteps
    return sent


@pytest.mark.parametrize(("env_id", "observation", "action"), [("LunarLander-v3", 32, 1), ("Pendulum-v1", 12, 4)])
def test_the_report_is_as_its_formula_says(tmp_path, env_id, observation, action):
    assert report_bytes(2048, 2, 32, 1) == 11672
    t, m = 8, 4
    config = Config(
        env_id=env_id, num_steps=t, num_envs=m, total_timesteps=2 * 2 * t * m, num_threads=1, test_episodes=1
    )
    assert reported_bytes(config, tmp_path / "run") == report_bytes(t, m, observation, action)


def report_bytes(t: int, m: int, o: int, a: int) -> int:
    """The formula of docs/cluster.md."""
    assert "`T x M x (A + 1) + M x (O + 24) + 3368`" in PAGES[1].read_text()
    assert "The report's 3368 bytes are 420 float64" in PAGES[1].read_text()
    return t * m * (a + 1) + m * (o + 24) + 3368
