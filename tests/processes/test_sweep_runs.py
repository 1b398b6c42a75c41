"""Sweeps of real runs: killed anywhere and resumed, with two workers, in each kind of storage."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from fabric_ppo.process.launch import die_with_parent
from fabric_ppo.tools import cli
from fabric_ppo.tools.sweep.folder import read_folder
from fabric_ppo.tools.sweep.study import RETURNS, Sweep
from tests.fixtures.launching import ROOT, clean_environment, free_port
from tests.fixtures.pages import of_kind, table_rows
from tests.fixtures.processes import PATIENCE, alive, descendants, kill_tree, state_of, wait_until
from tests.fixtures.sweeps import TINY, storage_url

pytest.importorskip("optuna")
TWO = ("--trials", "3", "--seeds", "2", "--jobs", "1", "--pruner", "none")


def environment() -> dict[str, str]:
    return clean_environment(PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def start(tmp_path):
    """Starts a sweep as a process of its own group; what is left of it ends with the test."""
    (tmp_path / "space.yaml").write_text(TINY)
    started = []

    def start_one(*words):
        process = subprocess.Popen(
            [sys.executable, "-m", "fabric_ppo", "sweep", *map(str, words)],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        kill_tree(process.pid)


def ended(process) -> tuple[int, str]:
    said = process.communicate(timeout=PATIENCE)[0]
    return process.returncode, said


def trials_of(folder):
    """The trials of a sweep, as a worker reads them."""
    settings, space = read_folder(folder)
    return Sweep(settings, space, folder).trials()


def outcome(folder):
    """State, value, parameters and returns of all trials, and the runs' weights."""
    weights = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("policy.safetensors")}
    return [
        (trial.state.name, trial.value, trial.params, trial.user_attrs[RETURNS]) for trial in trials_of(folder)
    ], weights


def logged(folder, lines):
    """True once runs of the sweep have logged so many updates in all."""
    return lambda: sum(path.read_text().count("\n") for path in folder.rglob("metrics.jsonl")) >= lines


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The outcome of a sweep that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "space.yaml").write_text(TINY)
    words = [sys.executable, "-m", "fabric_ppo", "sweep", "space.yaml", *TWO, "--dir", "sweep"]
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return folder / "sweep", done.stdout


def test_a_sweep_has_the_trials_and_runs_that_were_asked_for(whole):
    """A value is the mean of the final tests; the page, the preset and the lines say so."""
    folder, said = whole
    trials = trials_of(folder)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
    for trial in trials:
        runs = [folder / "trials" / str(trial.number) / f"seed_{seed}" for seed in (1, 2)]
        tests = [json.loads((run / "summary.json").read_text()) for run in runs]
        assert [test["seed"] for test in tests] == [1, 2]
        returns = [test["test"]["return_mean"] for test in tests]
        assert trial.user_attrs[RETURNS] == returns
        assert trial.value == sum(returns) / 2
        assert f"trial {trial.number}: " in said
        flags = yaml.safe_load((runs[0] / "config.yaml").read_text())
        assert flags["learning_rate"] == trial.params["learning_rate"]
        assert flags["hidden_sizes"] == json.loads(trial.params["hidden_sizes"])
    best = max(trials, key=lambda trial: trial.value)
    preset = yaml.safe_load((folder / "best.yaml").read_text())
    assert preset["learning_rate"] == best.params["learning_rate"]
    assert "all 3 of 3 trials" in (folder / "sweep.html").read_text()
    for name in ("sweep.html", "best.yaml"):
        assert f"sweep/{name}" in said


def test_a_run_of_a_sweep_is_a_run_as_any_other(whole, tmp_path):
    """That evaluations are reported changes nothing: the preset trains to the same bits."""
    folder, _ = whole
    best = max(trials_of(folder), key=lambda trial: trial.value)
    own = folder / "trials" / str(best.number) / "seed_2"
    threads = str(yaml.safe_load((own / "config.yaml").read_text())["num_threads"])
    words = [sys.executable, ROOT / "train_torch.py", "--config", folder / "best.yaml", "--seed", "2"]
    words += ["--num-threads", threads, "--run-dir", tmp_path / "run"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/policy.safetensors").read_bytes() == (own / "policy.safetensors").read_bytes()


def test_a_sweep_that_is_killed_twice_ends_as_if_it_had_not_been(whole, start, tmp_path):
    """First a run's process, then the whole sweep with all processes, twice: the same trials, the same bits."""
    folder = tmp_path / "sweep"
    process = start("space.yaml", *TWO, "--dir", folder)
    assert wait_until(logged(folder, 2))
    for each in descendants(process.pid):
        os.kill(each, signal.SIGKILL)
    assert wait_until(logged(folder, 11))
    for updates in (11, 27):
        assert wait_until(logged(folder, updates))
        below = [process.pid, *descendants(process.pid)]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)
        assert wait_until(lambda pids=below: not any(map(alive, pids)))
        process = start("--resume", folder)
    status, said = ended(process)
    assert status == 0, said
    assert outcome(folder) == outcome(whole[0])


def test_a_sweep_whose_parent_alone_is_killed_takes_its_runs_with_it(start, tmp_path):
    folder = tmp_path / "sweep"
    process = start("space.yaml", *TWO, "--dir", folder)
    assert wait_until(logged(folder, 1))
    below = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    assert wait_until(lambda: not any(map(alive, below)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_in_good_order(whole, start, tmp_path, number):
    """Status 75, and the command to go on with; what it goes on from is saved."""
    folder = tmp_path / "sweep"
    process = start("space.yaml", *TWO, "--dir", folder)
    assert wait_until(logged(folder, 3))
    os.killpg(process.pid, number) if number == signal.SIGINT else os.kill(process.pid, number)
    status, said = ended(process)
    assert status == 75, said
    assert f"stopped by {number.name}; go on with " in said
    assert f"sweep --resume {folder}" in said
    assert "Traceback" not in said
    assert trials_of(folder)[0].state.name == "RUNNING"
    assert ended(start("--resume", folder))[0] == 0
    assert outcome(folder) == outcome(whole[0])


def two_workers(start, tmp_path, url, *more):
    """Two workers by one storage at the same time; the trials that each has worked on."""
    words = ("space.yaml", "--storage", url, "--trials", "5", "--seeds", "1", "--jobs", "1", *more)
    workers = [start(*words, "--dir", tmp_path / name) for name in "ab"]
    for each in workers:
        status, said = ended(each)
        assert status == 0, said
    found = [{int(path.name) for path in (tmp_path / name / "trials").iterdir()} for name in "ab"]
    assert [trial.state.name for trial in trials_of(tmp_path / "a")] == ["COMPLETE"] * 5
    return found


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_two_workers_run_each_trial_once(start, tmp_path, kind):
    first, second = two_workers(start, tmp_path, storage_url(kind, tmp_path))
    assert not first & second
    assert first | second == set(range(5))


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_the_trials_of_a_dead_worker_are_gone_on_with_by_another(start, tmp_path, kind):
    """From its checkpoints, which are on a disk that both have; then nothing is left for it."""
    words = ("space.yaml", "--storage", storage_url(kind, tmp_path), "--trials", "2", "--seeds", "1", "--jobs", "1")
    dead = start(*words, "--dir", tmp_path / "a")
    assert wait_until(logged(tmp_path / "a", 2))
    os.killpg(dead.pid, signal.SIGKILL)
    dead.wait(PATIENCE)
    status, said = ended(start(*words, "--dir", tmp_path / "b", "--lost-after", "1"))
    assert status == 0, said
    assert [trial.state.name for trial in trials_of(tmp_path / "b")] == ["COMPLETE"] * 2
    assert not (tmp_path / "b" / "trials" / "0").exists()
    assert json.loads((tmp_path / "a/trials/0/seed_1/summary.json").read_text())["test"]
    assert ended(start("--resume", tmp_path / "a"))[0] == 0
    assert len(trials_of(tmp_path / "a")) == 2


def test_trials_that_fail_have_their_output_kept_and_all_at_first_end_it(start, tmp_path, monkeypatch):
    """The environment is a module in the folder that the sweep is started in."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "failing.py").write_text(
        "import gymnasium\n\n\nclass Failing(gymnasium.Wrapper):\n    def step(self, action):\n"
        "        raise RuntimeError('out of order')\n"
    )
    (tmp_path / "space.yaml").write_text(f"{TINY}env_wrapper: failing:Failing\n")
    status, said = ended(start("space.yaml", *TWO, "--trials", "9", "--dir", "sweep"))
    assert status == 1, said
    assert "error: the first 3 trials have all failed; their output is in sweep/trials" in said
    assert said.count(": failed (") == 3
    assert "out of order" in (tmp_path / "sweep/trials/0/seed_1/output.txt").read_text()
    assert [trial.state.name for trial in trials_of(tmp_path / "sweep")] == ["FAIL"] * 3


LEVELS = """
import gymnasium


class Low(gymnasium.Wrapper):
    level = 0.0

    def reset(self, **options):
        self.steps = 0
        return super().reset(**options)

    def step(self, action):
        obs, _, _, _, info = super().step(action)
        self.steps += 1
        return obs, self.level, self.steps == 5, False, info


class Middle(Low):
    level = 1.0


class High(Low):
    level = 2.0
"""


def test_what_is_below_the_median_of_five_or_more_is_pruned_at_an_evaluation(start, tmp_path, monkeypatch):
    """Returns are 0, 5 and 10, by the wrapper: the rule can be followed by hand. What is pruned has no value."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "levels.py").write_text(LEVELS)
    wrappers = "env_wrapper: {choices: ['levels:Low', 'levels:Middle', 'levels:High']}\n"
    (tmp_path / "space.yaml").write_text(TINY + wrappers)
    words = ("--trials", "10", "--seeds", "1", "--jobs", "1", "--pruner", "median", "--dir", "sweep")
    status, said = ended(start("space.yaml", *words))
    assert status == 0, said
    values, pruned = [], []
    for trial in trials_of(tmp_path / "sweep"):
        level = {"levels:Low": 0.0, "levels:Middle": 5.0, "levels:High": 10.0}[trial.params["env_wrapper"]]
        if len(values) >= 5 and level < statistics.median(values):
            pruned.append(trial)
        else:
            values.append(level)
            assert (trial.state.name, trial.value) == ("COMPLETE", level)
    assert pruned
    for trial in pruned:
        assert trial.state.name == "PRUNED"
        assert max(trial.intermediate_values) == 3  # of ten: the first that the pruner looks at
        assert RETURNS not in trial.user_attrs
        summary = json.loads((tmp_path / f"sweep/trials/{trial.number}/seed_1/summary.json").read_text())
        assert summary["ended_by"] == "callback"
        assert f"trial {trial.number}: pruned after 30%" in said


def page_commands():
    """Commands of docs/sweep.md, and those of README about sweeps."""
    text = (ROOT / "docs/sweep.md").read_text()
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    return [*map(shlex.split, lines), *of_kind("sweep")]


def test_the_commands_of_the_page_run(tmp_path):
    """With its space, in order; tiny."""
    text = (ROOT / "docs/sweep.md").read_text()
    (space,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "space.yaml").write_text(space.replace("50000", "2048") + "test_episodes: 1\neval_episodes: 1\n")
    for words in page_commands():
        assert words[:3] == ["python", "-m", "fabric_ppo"]
        tiny = ["--trials", "1"] if "sweep" in words else ["--test-episodes", "1"]
        tiny += ["--seeds", "1"] if "--trials" in words else []
        done = subprocess.run(
            [sys.executable, *words[1:], *tiny],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, (words, done.stderr)
    assert (tmp_path / "logs/sweeps/cartpole/sweep.html").is_file()
    assert list(tmp_path.glob("logs/sweeps/*_space/best.yaml"))


def test_every_option_is_on_the_page(capsys):
    with pytest.raises(SystemExit):
        cli.main(["sweep", "--help"])
    has = set(re.findall(r"^  (--[\w-]+)", capsys.readouterr().out, re.MULTILINE))
    rows = table_rows("| option | meaning |", ROOT / "docs/sweep.md")
    assert {row[0].strip("`").split()[0] for row in rows} == has


POSTGRES = next(
    (
        path
        for path in map(
            Path, (shutil.which("postgres") or "", *sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres")))
        )
        if path.name
    ),
    None,
)


@pytest.fixture
def postgres():
    """The URL of a database of a server of its own, and the process of the server."""
    if POSTGRES is None:
        pytest.skip("needs the programs of PostgreSQL: apt install postgresql")
    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp())
    user = None
    if os.getuid() == 0:  # which the server refuses
        names = {each.pw_name for each in pwd.getpwall()}
        user = "postgres" if "postgres" in names else "nobody"
        shutil.chown(folder, user)
    port, initdb = free_port(), POSTGRES.resolve().with_name("initdb")
    subprocess.run(
        [initdb, "-D", folder / "data", "-A", "trust", "-U", "sweep"],
        check=True,
        capture_output=True,
        user=user,
        cwd=folder,
    )
    words = [POSTGRES.resolve(), "-D", folder / "data", "-k", folder, "-p", str(port), "-h", "127.0.0.1"]

    def serve():
        with (folder / "log.txt").open("a") as log:
            server = subprocess.Popen(words, user=user, cwd=folder, stdout=log, stderr=log, preexec_fn=die_with_parent)
        assert wait_until(lambda: is_ready(port) or server.poll() is not None)
        assert server.poll() is None, (folder / "log.txt").read_text()
        servers.append(server)
        return server

    servers = []
    yield f"postgresql+psycopg://sweep@127.0.0.1:{port}/postgres", serve
    for server in servers:
        if server.poll() is None:
            server.send_signal(signal.SIGINT)
            server.wait(PATIENCE)
    shutil.rmtree(folder)


def is_ready(port):
    import psycopg

    try:
        psycopg.connect(host="127.0.0.1", port=port, user="sweep", dbname="postgres").close()
        return True
    except psycopg.OperationalError:
        return False


def test_two_workers_by_postgresql(start, tmp_path, postgres):
    url, serve = postgres
    serve()
    first, second = two_workers(start, tmp_path, url)
    assert not first & second
    assert first | second == set(range(5))


def test_a_storage_that_goes_ends_the_sweep_with_a_line_and_nothing_is_lost(start, tmp_path, postgres):
    """The server is killed in the midst of it, and comes again."""
    url, serve = postgres
    server = serve()
    folder = tmp_path / "sweep"
    process = start("space.yaml", *TWO, "--storage", url, "--dir", folder)
    assert wait_until(logged(folder, 3))
    server.send_signal(signal.SIGQUIT)
    server.wait(PATIENCE)
    status, said = ended(process)
    assert status == 1, said
    assert f"error: --storage {url}: " in said
    assert "go on with " in said
    assert "Traceback" not in said
    serve()
    status, said = ended(start("--resume", folder))
    assert status == 0, said
    assert [trial.state.name for trial in trials_of(folder)] == ["COMPLETE"] * 3


def test_a_second_worker_in_the_same_folder_is_refused(start, tmp_path):
    folder = tmp_path / "sweep"
    process = start("space.yaml", *TWO, "--dir", folder)
    assert wait_until(logged(folder, 1))
    os.kill(process.pid, signal.SIGSTOP)
    assert wait_until(lambda: state_of(process.pid) == "T")
    status, said = ended(start("--resume", folder))
    assert (status, said) == (2, f"error: --resume {folder}: another process works there\n")
