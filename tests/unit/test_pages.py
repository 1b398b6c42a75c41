"""Pages of the documentation: every number and link is true, and every command is one that works.

Commands are parsed here, by their launcher and by the script. A fence or command of a kind that no check knows fails.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import replace
from math import prod
from pathlib import Path
from unittest import mock

import pytest
import torch

from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import SCRIPT_CONFIGS, Config, script_file
from fabric_ppo.envs.make import make_envs
from fabric_ppo.fast.loss_module import make_optimizer
from fabric_ppo.ppo.batch import make_batch
from fabric_ppo.ppo.update import UpdateStats
from fabric_ppo.process.group import Ranks
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.rollouts.collect import collect
from fabric_ppo.run.setup import RunSetup
from fabric_ppo.tools import cli, suite
from fabric_ppo.tools.flags import parse_flags
from fabric_ppo.tools.suite import SUITES
from tests.fixtures.launching import ROOT, clean_environment
from tests.fixtures.pages import (
    JOB_TITLES,
    PAGES,
    TEXT,
    TRAINING,
    fences,
    headline_command,
    is_for_several_hosts,
    of_kind,
    parsed,
    script_of,
    split_variables,
    table_rows,
)
from tests.fixtures.processes import PATIENCE


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
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE).stdout
    removed, added = (len(re.findall(f"^{sign} ?", said, re.MULTILINE)) for sign in "<>")
    lengths = [len((ROOT / name).read_text().splitlines()) for name in words[1:]]
    text = f"{removed} lines of `{words[1]}` (of {lengths[0]}) and {added} of `{words[2]}` (of {lengths[1]})"
    assert text in TEXT
    rows = table_rows("| lines about | `train_torch.py` | `train_fabric.py` |")
    assert [sum(int(row[column]) for row in rows) for column in (1, 2)] == [removed, added]


def test_updates_are_counted_as_explained():
    headline = parsed(headline_command("fabric"))
    config, steps = headline.config, headline.config.num_steps * headline.config.num_envs * headline.ranks
    updates = config.num_updates(headline.ranks)
    iterations = replace(config, timestep_unit="iteration").num_updates(headline.ranks)
    assert f"that is {updates} updates and {updates * steps:,} transitions" in TEXT
    assert f"`--timestep-unit iteration` it would make {iterations}." in TEXT


def without_free_port(line):
    """A command of `make train` without its port, which is a free one: another run may have the launcher's own."""
    line, ports = re.subn(r" --main-port=\$\(.*\)(?= train_)", "", line)
    assert ports == 1
    return line


def test_both_headline_commands_and_make_train_are_the_same_training():
    args = ["make", "-n", "--no-print-directory", "train"]
    env = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "TRAIN_FLAGS")}
    said = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, env=env).stdout
    _, _, flags = script_of(headline_command("fabric"))
    assert script_of(headline_command("torch"))[2] == flags
    training, report = said.splitlines()[-2:]
    training = without_free_port(training)
    assert training.endswith(" ".join(headline_command("fabric")[1:]))
    assert report.endswith(" ".join(flags))


@pytest.mark.parametrize("words", of_kind("make"), ids=" ".join)
def test_make_targets_exist(words, tmp_path):
    variables, words = split_variables(words)
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", "-C", str(ROOT), *words[1:]],
        cwd=tmp_path,
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    if "train" in words:
        training = shlex.split(without_free_port(done.stdout.splitlines()[-2]))
        assert parsed(["fabric", *training[training.index("run") :]]).name == "fabric"
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


@pytest.mark.parametrize("words", of_kind("train"), ids=" ".join)
def test_the_command_line_launches_a_command_of_the_page(words, monkeypatch):
    """What `python -m fabric_ppo train` becomes is read by the launcher's parser, and has all the flags."""
    execv = mock.Mock(side_effect=SystemExit)
    monkeypatch.setattr("os.execve", execv)
    _, plain = split_variables(words)
    with pytest.raises(SystemExit):
        cli.main(plain[3:])
    ((_, (_, _, _, launcher, *rest), _),) = (call.args for call in execv.call_args_list)
    start = {"torch.distributed.run": ["torchrun"], "lightning.fabric.cli": ["fabric", "run"]}[launcher]
    at = next(index for index, word in enumerate(rest) if word.endswith(".py"))
    launched = parsed([*start, *rest[:at], Path(rest[at]).name, *rest[at + 1 :]])
    wanted = parsed(words)
    assert (launched.name, launched.config, launched.ranks) == (wanted.name, wanted.config, wanted.ranks)
    if is_for_several_hosts(words):
        assert (launched.address, launched.port) == (wanted.address, wanted.port)


@pytest.mark.parametrize("words", of_kind("benchmark"), ids=" ".join)
def test_suites_are_what_the_page_says(words, monkeypatch):
    run_suite = mock.Mock(return_value=0)
    monkeypatch.setattr(suite, "run_suite", run_suite)
    assert cli.main(words[3:]) == 0
    assert run_suite.call_args.args[0]
    (listed,) = re.findall(r"^Suites are (.*?)\.", TEXT, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", listed)) == set(SUITES)


def test_every_option_of_evaluate_is_listed(capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    has = set(re.findall(r"^  (--[\w-]+)", capsys.readouterr().out, re.MULTILINE))
    rows = table_rows("| option of `evaluate` | meaning |")
    assert {row[0].strip("`").split()[0] for row in rows} == has
    shown = {word for words in of_kind("evaluate") for word in words if word.startswith("--")}
    assert shown == has


CLUSTER = ROOT / "docs/cluster.md"
JOBS = fences("slurm")
JOB_OPTIONS = {
    **dict.fromkeys(("ntasks", "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node"), r"[1-9]\d*"),
    **{"job-name": r"[\w-]+", "time": r"\d\d:\d\d:\d\d", "array": r"\d+-\d+", "open-mode": "append"},
    **{"mem-per-cpu": r"\d+G", "output": r"slurm-(%j|%A_%a)\.out", "signal": r"USR1@\d+", "requeue": ""},
}
"""Options of sbatch that the job files have, as its manual has them, and what their values look like."""
START = 'train torch --devices "$SLURM_CPUS_PER_TASK"'
"""The words of the files that a row of the table replaces."""


def job_options(text: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)
    return {name: value for name, _, value in (each.removeprefix("--").partition("=") for each in found)}


def job_command(text: str) -> list[str]:
    """Words of the command that trains, with the variables of a job: what `srun` and `bash -c` start."""
    options = job_options(text)
    given = {"SLURM_NNODES": options.get("nodes", "1"), "SLURM_CPUS_PER_TASK": options["cpus-per-task"]}
    given |= {"SLURM_GPUS_ON_NODE": options.get("gpus-per-node", "0")}
    given |= {"SLURM_NODEID": "1", "MAIN_ADDRESS": "10.0.0.1", "MAIN_PORT": "10007", "SLURM_JOB_ID": "7"}
    given |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"} if "array" in options else {}
    (run_dir,) = re.findall(r'^export RUN="(.*)"$', text, re.MULTILINE)
    given["RUN"] = with_variables(run_dir, given)
    (line,) = (line for line in text.splitlines() if "-m fabric_ppo train" in line)
    words = shlex.split(line)
    assert words[:2] == ["srun", "--cpus-per-task=$SLURM_CPUS_PER_TASK"], "srun does not take it from the head"
    words = shlex.split(words[-1]) if "bash" in words else words
    words = words[words.index("python") :]
    assert set(re.findall(r"\$(\w+)", " ".join(words))) <= set(given)
    return [with_variables(word, given) for word in words]


def with_variables(word: str, given: dict[str, str]) -> str:
    """A word of a shell with the values of its variables."""
    return re.sub(r"\$(\w+)", lambda name: given[name[1]], word)


@pytest.mark.parametrize("text", JOBS, ids=JOB_TITLES)
def test_a_job_file_is_one_that_works(text):
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, timeout=PATIENCE)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert text.startswith("#!/bin/bash\n#SBATCH ")
    head = text.partition("\n\n")[0]
    options = job_options(text)
    assert text.count("#SBATCH") == head.count("#SBATCH") == len(options), "sbatch reads no others"
    for name, value in options.items():
        assert re.fullmatch(JOB_OPTIONS[name], value), name
    assert {"output", "open-mode", "time", "signal", "requeue"} <= options.keys(), "each goes on after its time"
    words = job_command(text)
    got = parsed(words)
    assert got.config.resume
    assert got.config.run_dir.startswith(f"{os.getcwd()}/runs/7")
    gpus = int(options.get("gpus-per-node", 0))
    assert got.ranks == int(options.get("nodes", 1)) * (gpus or int(options["cpus-per-task"]))
    assert got.cuda == (gpus > 0)
    # a preset is tuned with one rank: the ranks divide its environments and minibatches
    preset = parse_flags(SCRIPT_CONFIGS["torch"], ["--config", words[words.index("--config") + 1]])
    assert got.ranks * got.config.num_envs == preset.num_envs
    assert got.ranks * got.config.per_rank_batch_size == preset.per_rank_batch_size
    assert options.get("ntasks", options.get("ntasks-per-node")) == "1"
    if "array" in options:
        assert (got.config.seed, options["output"]) == (2, "slurm-%A_%a.out")


def test_jobs_on_one_host_have_ports_of_their_own():
    """None is in the range that Linux takes ports from by itself."""
    (line,) = set(re.findall(r"^export MAIN_PORT=.*$", "".join(JOBS), re.MULTILINE))
    ports = []
    for job in (1, 2, 19999, 20000, 123456789):
        script = f'SLURM_JOB_ID={job}; {line}; echo "$MAIN_PORT"'
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=True)
        ports.append(int(done.stdout))
    assert len(set(ports)) == len(ports)
    assert all(1024 <= port < 32768 for port in ports)


CHANGES = table_rows("| script | ranks | head of the file | command | two hosts |")


def changed_job(text: str, head: str, command: str) -> str:
    """A job file as a row of the table has it."""
    for option in re.findall(r"`--([^`]+)`", head):
        name = option.partition("=")[0]
        text, count = re.subn(rf"^#SBATCH --{name}=.*$", f"#SBATCH --{option}", text, flags=re.MULTILINE)
        text = text if count else text.replace("#SBATCH --time", f"#SBATCH --{option}\n#SBATCH --time")
    assert START in text
    return text.replace(START, command.strip("`"))


@pytest.mark.parametrize("text", [each for each in JOBS if START in each])
@pytest.mark.parametrize("row", CHANGES, ids=lambda row: row[3])
def test_each_row_of_the_table_makes_a_job_file_that_works(row, text):
    script, _, head, command, several_hosts = row
    changed = changed_job(text, head, command)
    got, options = parsed(job_command(changed)), job_options(changed)
    assert script_file(SCRIPT_CONFIGS[got.name]) == script.strip("`")
    on_host = got.ranks // int(options.get("nodes", 1))
    gpus = int(options.get("gpus-per-node", 0))
    assert on_host == (gpus + (got.name == "decoupled") if gpus else int(options["cpus-per-task"]))
    if got.cuda and int(options.get("nodes", 1)) > 1:
        # beyond the first host there is no player, and each process trains
        assert (on_host <= gpus) == several_hosts.startswith("yes")


def test_every_script_has_a_row():
    assert {row[0].strip("`") for row in CHANGES} == {script_file(kind) for kind in SCRIPT_CONFIGS.values()}


class Recorder:
    """Two equal ranks; keeps how many bytes each gave to every all-gather."""

    def __init__(self):
        self.sent = []
        self.ranks = Ranks(0, 2, self.all_gather)

    def all_gather(self, tensor):
        self.sent.append(tensor.nbytes)
        return torch.stack([tensor, tensor])


def test_what_is_sent_is_as_the_formulas_say():
    text = CLUSTER.read_text()
    headline = parsed(headline_command("torch"))
    config, ranks = headline.config, headline.ranks
    envs = make_envs(config, 0, ranks)
    agent = make_agent(envs.spec, config)
    weights = sum(parameter.numel() for parameter in agent.parameters())
    obs = envs.spec.observation
    row = prod(obs.shape) * torch.zeros((), dtype=getattr(torch, obs.dtype)).itemsize
    row += prod(agent.distribution.action_shape) * agent.distribution.action_dtype.itemsize + 5 * 4
    batch = make_batch(
        collect(agent, RolloutBuffer(envs, agent, 8), config.seed, 0),
        replace(config, share_data=True),
        (recorder := Recorder()).ranks,
        0,
        torch.device("cpu"),
    )
    assert recorder.sent == [8 * config.num_envs * row]
    assert batch.num_shares == 2
    rollout = collect(agent, RolloutBuffer(envs, agent, 8), config.seed, 0)
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
    stats = UpdateStats(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1, *(1.0,) * 5, seconds=1.0)
    with RunSetup(config, recorder.ranks, folder) as setup:
        envs = setup.closing(make_envs(config, 0, 2))
        agent = make_agent(envs.spec, config)
        buffer = RolloutBuffer(envs, agent, config.num_steps)
        run = setup.start(agent, make_optimizer(agent, config), buffer)
        for update in run.updates():
            recorder.sent = []  # the start of a run has collectives, too
            run.finish_update(run.merge(collect(agent, buffer, config.seed, update), stats), 0.1)
            (sent,) = recorder.sent
        assert run.finish().env_steps == config.total_timesteps
    return sent


@pytest.mark.parametrize(("env_id", "observation", "action"), [("LunarLander-v3", 32, 1), ("Pendulum-v1", 12, 4)])
def test_the_report_is_as_its_formula_says(tmp_path, env_id, observation, action):
    assert report_bytes(2048, 2, 32, 1) == 12528
    t, m = 8, 4
    config = Config(
        env_id=env_id, num_steps=t, num_envs=m, total_timesteps=2 * 2 * t * m, num_threads=1, test_episodes=1
    )
    assert reported_bytes(config, tmp_path / "run") == report_bytes(t, m, observation, action)


def report_bytes(t: int, m: int, o: int, a: int) -> int:
    """The formula of docs/cluster.md."""
    assert "`T x M x (A + 1) + M x (O + 24) + 4224`" in CLUSTER.read_text()
    assert "The report's 4224 bytes are 527 float64" in CLUSTER.read_text()
    return t * m * (a + 1) + m * (o + 24) + 4224
