"""The benchmarks' own logic: agreed work, refusal of other work, medians, spread, ratios, and counts of a run."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.compare import reason
from benchmarks.growth import Cost, Size, rises
from benchmarks.install import REQUIREMENTS, ROOT
from benchmarks.programs import PEERS, PROGRAMS, Program, read_counts
from benchmarks.report import Run, Spread, failures, ratios, reference, spread, table, table_line, unequal_work
from benchmarks.workloads import Contender, Work, Workload, workloads
from fabric_ppo.config import SCRIPT_CONFIGS
from fabric_ppo.tools.flags import parse_flags

WORK = Work("CartPole-v1", 1024, num_envs=1, num_steps=128, batch_size=64, epochs=10)


ALL = workloads("configs/none.yaml", 1, 60.0)


def workload(work: Work = WORK, tolerance: float = 0.0) -> Workload:
    rows = (Contender("ours", "torch", work), Contender("theirs", "sbx", work))
    return Workload("w", "W", work, rows, "", tolerance=tolerance)


def run(row: str, number: int, wall: float, train: float | None, env_steps: int = 1024, problem: str = "") -> Run:
    return Run(row, number, "as it comes", wall, train, env_steps, 160, problem=problem)


@pytest.mark.parametrize(
    ("changes", "rollout", "gradient_steps"),
    [
        ({}, 128, 160),  # 8 updates x 10 epochs x 2 minibatches
        ({"batch_size": 100}, 128, 160),  # 128 rows in minibatches of 100 and 28
        ({"ranks": 2}, 256, 80),  # 4 updates x 10 x 2: the ranks step together
        ({"ranks": 3, "decoupled": True, "num_envs": 4}, 512, 80),  # 2 updates x 10 x 256 / 64 rows of a trainer
    ],
)
def test_gradient_steps_of_a_work(changes, rollout, gradient_steps):
    work = replace(WORK, **changes)
    assert (work.rollout, work.gradient_steps) == (rollout, gradient_steps)


def test_headline_works_are_as_the_page_says():
    counts = {name: (each.agreed.env_steps, each.agreed.gradient_steps) for name, each in ALL.items()}
    assert counts["p1"] == (65536, 512 * 10 * 2)
    assert counts["p1-2"] == (65536, 256 * 10 * 2)
    assert counts["p2"] == (499712, 61 * 10 * 64)
    assert counts["p3"] == (65536, 128 * 10 * 4)
    assert counts["p5"] == (524288, 512 * 4)
    assert counts["p7"] == (2097152, 32 * 4 * 32)
    assert counts["p8"] == (32768, 32 * 4 * 4)
    assert counts["p9"] == (65536, 32 * 10 * 32)


@pytest.mark.parametrize("name", [name for name, each in ALL.items() if each.agreed.stop_at_return is None])
@pytest.mark.parametrize("scale", [1.0, 0.0625])
def test_all_rows_of_a_workload_have_the_same_work(name, scale):
    works = [contender.work for contender in ALL[name].scaled(scale).contenders]
    assert len({(work.env_steps, work.gradient_steps) for work in works}) == 1
    wanted = ALL[name].agreed.env_steps * scale
    assert abs(works[0].env_steps - wanted) <= works[0].rollout / 2
    assert works[0].env_steps % works[0].rollout == 0


def test_our_commands_make_the_agreed_work():
    for each in ALL.values():
        for contender in each.contenders:
            if PROGRAMS[contender.program].environment is not None or contender.work.preset:
                continue
            words = PROGRAMS[contender.program].command(contender.work, 1, Path("folder"))
            at = next(index for index, word in enumerate(words) if Path(word).name.startswith("train_"))
            name = Path(words[at]).stem.removeprefix("train_").removeprefix("fabric_")
            flags = [word for word in words[at + 1 :] if word not in ("--env-backend", "envpool")]
            config, work = parse_flags(SCRIPT_CONFIGS[name], flags), contender.work
            ranks = 1 if work.decoupled else work.ranks
            assert config.num_updates(ranks) * config.num_steps * config.num_envs * ranks == work.env_steps
            assert (config.per_rank_batch_size, config.update_epochs) == (work.batch_size, work.epochs)
            assert (config.learning_rate, config.clip_coef) == (work.learning_rate, work.clip_coef)
            assert config.normalize_observations == config.normalize_rewards == work.normalize


def flags_of(words: list[str]) -> dict[str, str]:
    """`--name value` and `--name=value`, of the words behind the script."""
    flags = {}
    for at, word in enumerate(words):
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            flags[name.replace("-", "_")] = value or (words[at + 1] if at + 1 < len(words) else "")
    return flags


def cleanrl_work(flags: dict[str, str]) -> tuple[int, int, int]:
    """Transitions, gradient steps and rows of a minibatch, as CleanRL's scripts compute them."""
    rollout = int(flags["num_envs"]) * int(flags["num_steps"])
    updates, minibatches = int(flags["total_timesteps"]) // rollout, int(flags["num_minibatches"])
    return updates * rollout, updates * int(flags["update_epochs"]) * minibatches, rollout // minibatches


def sample_factory_work(flags: dict[str, str]) -> tuple[int, int, int]:
    """The same as Sample Factory does: until more transitions than it was told have been learned from."""
    rows, minibatches = int(flags["batch_size"]), int(flags["num_batches_per_epoch"])
    late = 1 + flags["env"].startswith("ALE/")  # with a pool in a worker it ends an update later, as measured
    updates = int(flags["train_for_env_steps"]) // (rows * minibatches) + late
    envs = int(flags["num_workers"]) * int(flags["num_envs_per_worker"]) * int(flags.get("env_agents", 1))
    assert envs * int(flags["rollout"]) == rows * minibatches
    return updates * rows * minibatches, updates * minibatches * int(flags["num_epochs"]), rows


def peer_work(flags: dict[str, str]) -> tuple[int, int, int]:
    """The same as the programs do that are told a minibatch's rows."""
    rollout, rows = int(flags["num_envs"]) * int(flags["num_steps"]), int(flags["batch_size"])
    updates = int(flags["total_timesteps"]) // rollout
    return updates * rollout, updates * int(flags["epochs"]) * (rollout // rows), rows


RULES = {
    **dict.fromkeys(("cleanrl", "leanrl"), cleanrl_work),
    **dict.fromkeys(("sample-factory", "sample-factory-envpool"), sample_factory_work),
    **dict.fromkeys(("stable-baselines3", "sbx", "rejax", "skrl", "tianshou", "torchrl"), peer_work),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [1.0, 0.0625])
def test_commands_of_other_programs_make_the_agreed_work(name, scale):
    for contender in ALL[name].scaled(scale).contenders:
        if rule := RULES.get(contender.program):
            work = contender.work
            flags = flags_of(PROGRAMS[contender.program].command(work, 1, Path("folder")))
            assert rule(flags) == (work.env_steps, work.gradient_steps, work.batch_size), contender.row
            clip = next(float(flags[flag]) for flag in ("clip_coef", "ppo_clip_ratio") if flag in flags)
            assert (float(flags["learning_rate"]), clip) == (work.learning_rate, work.clip_coef)


def test_the_scripts_of_peers_read_the_flags_that_they_are_given(monkeypatch):
    """They run in environments without this package, and share one parser."""
    parse_args = runpy.run_path(str(PEERS / "flags.py"))["parse_args"]
    for each in ALL.values():
        for contender in each.contenders:
            if RULES.get(contender.program) is not peer_work:
                continue
            work = contender.work
            monkeypatch.setattr("sys.argv", PROGRAMS[contender.program].command(work, 3, Path("folder"))[1:])
            given = parse_args("")
            assert (given.seed, given.env_id, given.total_timesteps) == (3, work.env_id, work.env_steps)
            assert (given.num_envs, given.num_steps, given.epochs) == (work.num_envs, work.num_steps, work.epochs)
            assert (given.gamma, given.gae_lambda, given.ent_coef) == (work.gamma, work.gae_lambda, work.ent_coef)
            assert given.normalize == work.normalize
            assert given.stop_at_return == (work.stop_at_return or float("inf"))


def test_every_program_whose_flags_say_its_work_is_tested():
    scripts = {name for name, each in PROGRAMS.items() if each.source is not None and each.environment is None}
    ours = {name for name, each in PROGRAMS.items() if each.environment is None} - scripts
    configured = {"sheeprl", "sheeprl-decoupled"}  # by Hydra's words
    assert set(PROGRAMS) == set(RULES) | scripts | ours | configured


def test_unequal_work_is_refused():
    assert unequal_work(workload(), 1024, 160, None) == ""
    assert unequal_work(workload(), 1152, 160, None) == "1,152 transitions, 1,024 agreed"
    assert unequal_work(workload(), 1024, 16, None) == "16 gradient steps, 160 agreed"


def test_tolerance_is_a_share_of_the_agreed_work():
    assert unequal_work(workload(tolerance=0.05), 1075, 168, None) == ""
    assert unequal_work(workload(tolerance=0.05), 1076, 160, None) == "1,076 transitions, 1,024 agreed"


def test_a_return_is_agreed_instead_of_counts():
    solve = workload(replace(WORK, stop_at_return=200.0))
    assert unequal_work(solve, 1, 1, 200.0) == ""
    assert unequal_work(solve, 1024, 160, 199.0) == "mean return 199.0, 200 agreed"
    assert unequal_work(solve, 1024, 160, None) == "mean return unknown, 200 agreed"


def test_spread_is_median_and_extremes():
    assert spread([4.0, 1.0, 2.0]) == Spread(2.0, 1.0, 4.0)
    assert spread([4.0, 1.0]) == Spread(2.5, 1.0, 4.0)
    assert spread([1234.0]).show(1) == "1,234.0 (1,234.0 .. 1,234.0)"


RUNS = [
    run("ours", 1, 2.0, 1.0),
    run("theirs", 1, 8.0, 6.0),
    run("ours", 2, 4.0, 2.0),
    run("theirs", 2, 8.0, None),
    run("ours", 3, 1.0, 1.0, problem="status 1: no"),
    run("theirs", 3, 90.0, 90.0),
]


def test_ratios_are_of_rounds_in_which_both_ran():
    assert ratios(workload(), RUNS, "theirs", "wall_seconds") == Spread(3.0, 2.0, 4.0)  # 8/2 and 8/4
    assert ratios(workload(), RUNS, "theirs", "train_seconds") == Spread(6.0, 6.0, 6.0)
    assert ratios(workload(), RUNS, "nobody", "wall_seconds") is None


def test_ratios_are_to_the_first_row_that_has_figures():
    runs = [run("ours", 1, 2.0, 1.0, problem="no"), run("theirs", 1, 8.0, 6.0), run("others", 1, 4.0, 6.0)]
    assert reference(runs) == "theirs"
    assert ratios(workload(), runs, "others", "wall_seconds") == Spread(0.5, 0.5, 0.5)
    assert ratios(workload(), runs, "ours", "wall_seconds") is None
    assert reference(runs[:1]) == ""


def test_the_reason_of_a_failure_is_its_first_error():
    assert reason("hello\nerror: --flag 3: no | not\n=====\n") == "error: --flag 3: no / not"
    assert reason("Traceback\n  File x\nValueError: no\n") == "ValueError: no"
    assert reason("one\n\ntwo\n\n") == "two"
    assert reason("") == "no output"


def test_ratios_are_per_transition_unless_a_return_is_agreed():
    runs = [run("ours", 1, 2.0, 1.0), run("theirs", 1, 8.0, 6.0, env_steps=2048)]
    assert ratios(workload(), runs, "theirs", "wall_seconds") == Spread(2.0, 2.0, 2.0)
    solve = workload(replace(WORK, stop_at_return=200.0))
    assert ratios(solve, runs, "theirs", "wall_seconds") == Spread(4.0, 4.0, 4.0)


def test_a_line_of_the_table():
    assert table_line(workload(), RUNS, "ours") == (
        "| ours | as it comes. refused 1 of 3: status 1: no | 3.0 (2.0 .. 4.0) | 1.5 (1.0 .. 2.0) | 768 (512 .. 1,024) "
        "| 1.00 (1.00 .. 1.00) | 1.00 (1.00 .. 1.00) | 1,024 | 160 |"
    )


def test_a_row_without_a_good_run_has_no_figures():
    runs = [run("ours", 1, 2.0, 1.0), run("theirs", 1, 0.5, 0.1, problem="16 gradient steps, 160 agreed")]
    lines = table(workload(), runs, {}).splitlines()
    assert lines[-1] == "| theirs | as it comes. refused 1 of 1: 16 gradient steps, 160 agreed |" + " |" * 7
    assert len({line.count("|") for line in lines}) == 1
    lines = table(workload(), runs[:1], {"theirs": "not installed"}).splitlines()
    assert lines[-1] == "| theirs | skipped: not installed |" + " |" * 7


def rank(env_steps: int, gradient_steps: int, seconds: float) -> str:
    return json.dumps({"env_steps": env_steps, "gradient_steps": gradient_steps, "train_seconds": seconds})


def test_counts_of_ranks_are_put_together(tmp_path):
    got = read_counts(tmp_path, "\n".join(["noise", rank(512, 80, 2.0), "{}", rank(512, 80, 3.0)]))
    assert (got.env_steps, got.gradient_steps, got.train_seconds) == (1024, 80, 3.0)
    player_and_trainers = [rank(512, 0, 1.0), rank(0, 80, 1.0), rank(0, 80, 1.0)]
    assert read_counts(tmp_path, "\n".join(player_and_trainers)).gradient_steps == 80
    with pytest.raises(ValueError, match="79 and 80 gradient steps"):
        read_counts(tmp_path, "\n".join([rank(512, 80, 1.0), rank(512, 79, 1.0)]))
    with pytest.raises(ValueError, match="no counts"):
        read_counts(tmp_path, "noise")


def test_what_is_not_solved_is_a_result_and_what_went_wrong_a_failure():
    unsolved, late, wrong = (
        run("ours", number, 2.0, 1.0, problem=problem)
        for number, problem in enumerate(["mean return 9.0, 200 agreed", "not done after 60 s", "status 1: no"])
    )
    solve = workload(replace(WORK, stop_at_return=200.0))
    assert failures(solve, [unsolved, late, wrong, run("ours", 4, 2.0, 1.0)]) == [wrong]
    assert failures(workload(), [late, run("ours", 4, 2.0, 1.0)]) == [late]


def nothing(work: Work, seed: int, folder: Path) -> list[str]:
    return []


def test_a_source_that_is_missing_is_told(tmp_path):
    assert Program(nothing, source=tmp_path).why_not(WORK) == ""
    program = Program(nothing, source=ROOT / ".venv-bench" / "nothing")
    assert program.why_not(WORK) == "its folder is not in .venv-bench/nothing"


def test_a_preset_that_is_missing_is_told():
    first = ALL["p4"].contenders[0]
    assert PROGRAMS[first.program].why_not(first.work) == "configs/none.yaml: no such file"


def test_requirements_are_pinned():
    for path in REQUIREMENTS.glob("*.txt"):
        lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
        assert all("==" in line for line in lines if line)
        assert "torch==2.13.0" in lines or path.stem == "rejax"  # which has none
    assert {each.environment for each in PROGRAMS.values()} - {None} == {
        path.stem for path in REQUIREMENTS.glob("*.txt")
    }


def test_growth_marks_what_costs_more_than_at_a_smaller_size():
    def cost(ranks: int, num_envs: int, total: float) -> Cost:
        return Cost(Size("environments", ranks, num_envs, 64, 64, 4, 5), 0.0, 0.0, total)

    costs = [cost(1, 1, 10.0), cost(1, 4, 10.9), cost(1, 16, 11.1), cost(2, 1, 6.0), cost(2, 4, 10.0)]
    assert [rises(costs, each) for each in costs] == [False, False, True, False, True]
