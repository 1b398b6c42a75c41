"""Commands of `python -m fabric_ppo` and `fabric-ppo`: train, evaluate, plot, benchmark, presets."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fabric_ppo.config import SCRIPT_CONFIGS, TEST_STEP_LIMIT, Config, DecoupledConfig, TorchConfig, script_file
from fabric_ppo.config_values import ATARI
from fabric_ppo.process.console import end_stdout, lost_output, open_streams, print_line, stdout_on_stderr
from fabric_ppo.process.errors import BAD_INPUT, FAILED, NOT_ALL_WRITTEN, ConfigError, EnvironmentFault
from fabric_ppo.process.files import require_text_path
from fabric_ppo.process.script import shut_down
from fabric_ppo.process.tasks import require_one_task
from fabric_ppo.run.fabric_flags import require_devices, require_fabric_flags
from fabric_ppo.run.folder import require_no_run, started_with
from fabric_ppo.run.resolve import resolve
from fabric_ppo.tools.command_parser import CommandParser, count
from fabric_ppo.tools.flags import parse_flags, resumed_folder
from fabric_ppo.tools.help import ABOUT, HELP, HELP_ALL, Entry, Section, page
from fabric_ppo.tools.locate import describe_preset, preset_names, script_path

if TYPE_CHECKING:
    from fabric_ppo.rollouts.evaluate import TestResult


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; `args` are by default those of the process."""
    args = sys.argv[1:] if args is None else list(args)
    around = {"plot": _plot, "benchmark": _benchmark, "presets": _presets}
    commands = {"train": _train, "evaluate": _evaluate} | around
    if not args or args[0] in (*HELP, HELP_ALL):
        print(_commands_page())
        return 0 if args else BAD_INPUT
    try:
        if args[0] not in commands:
            raise ConfigError(f"{args[0]}: unknown command; one of {', '.join(commands)} is expected")
        return commands[args[0]](args[1:])
    except ConfigError as error:
        print_line(f"error: {error}", sys.stderr)
        return BAD_INPUT


def console() -> NoReturn:
    """Run the console script `fabric-ppo`: a process of its own."""
    open_streams()
    status = main()
    # an environment's code may print as the process ends: that is none of the result
    end_stdout()
    shut_down(status)


def _commands_page() -> str:
    """Return the page of `--help`."""
    scripts = "{" + ",".join(SCRIPT_CONFIGS) + "}"
    commands = [
        Entry(f"train {scripts} [--devices N] [FLAGS]", "Check the flags, then launch a training script."),
        Entry("evaluate RUN_DIR", "Play test episodes with a trained agent."),
        Entry("plot RUN_DIR ... --out FILE", "Draw learning curves."),
        Entry("benchmark SUITE ...", "Train presets with several seeds, and write their scores."),
        Entry("presets", "List the presets, which --config takes by name."),
    ]
    about = "Train agents with PPO, and look at what they have learned."
    return page("fabric-ppo COMMAND", about, [Section("Commands", commands)], "COMMAND --help shows its flags.")


def _train_page() -> str:
    """Return the page of `train --help`."""
    scripts = [Entry(name, f"{script_file(kind)}, {ABOUT[kind.script]}") for name, kind in SCRIPT_CONFIGS.items()]
    about = "Check the flags, then launch a training script on one process or several."
    more = "fabric-ppo train torch --help shows the flags that most runs need, --help-all shows all of them."
    usage = "fabric-ppo train SCRIPT [--devices N] [FLAGS]"
    return page(usage, about, [Section("Scripts", scripts)], more)


def _train(args: list[str]) -> int:
    """Check the flags, and replace this process by the launcher of a script.

    Raises:
        ConfigError: something cannot work; nothing has been launched or written.
    """
    if not args or args[0] in (*HELP, HELP_ALL):
        print(_train_page())
        return 0 if args else BAD_INPUT
    if args[0] not in SCRIPT_CONFIGS:
        raise ConfigError(f"train {args[0]}: one of {', '.join(SCRIPT_CONFIGS)} is expected")
    name, rest = args[0], args[1:]
    config_type = SCRIPT_CONFIGS[name]
    parser = _launcher_parser(name)
    launch, flags = parser.parse_known_args(rest)
    if (run_dir := resumed_folder(flags, {})) is not None:
        parser.set_defaults(**_launcher_of_run(run_dir, config_type))
        launch, flags = parser.parse_known_args(rest)
    _check_launcher(launch)
    require_one_task(launch.num_nodes)
    if config_type is DecoupledConfig:
        # its trainers find their GPUs themselves; `fabric run` would want one for every process
        launch.accelerator = launch.accelerator or "cpu"
    launcher = Section("Launcher", parser.flag_entries())
    config = parse_flags(config_type, flags, parser.prog, [launcher])
    config = resolve(config, launch.devices * launch.num_nodes, launch.devices)
    if config_type is not TorchConfig:
        _check_fabric(launch)
    require_no_run(config)
    sys.stdout.flush()
    # without it torchrun prints a warning; the script sets its own number of threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.execv(sys.executable, [sys.executable, *_launch_command(config_type, launch), *flags])


def _launcher_of_run(run_dir: str, config_type: type[Config]) -> dict[str, Any]:
    """Return the launcher's flags that a run on this host was started with, name -> value."""
    script, given = started_with(run_dir)
    if script != script_file(config_type):
        return {}
    names = ("devices", "accelerator", "strategy", "precision")[: 1 if config_type is TorchConfig else None]
    found: dict[str, Any] = {name: given[name] for name in names if name in given}
    if "devices" in found:  # text, such as auto, for `fabric run` alone
        found["devices"] = int(found["devices"]) if found["devices"].isdecimal() else 1
    return found


def _launcher_parser(name: str) -> CommandParser:
    """Return the parser for the launcher's flags of a script."""
    parser = CommandParser(f"fabric-ppo train {name}", add_help=False)
    parser.add_argument("--devices", type=count, default=1, help="Processes on each host. (default: 1)")
    parser.add_argument("--num-nodes", type=count, default=1, help="Number of hosts. (default: 1)")
    parser.add_argument("--node-rank", type=count, default=0, help="Number of this host, from 0 up. (default: 0)")
    parser.add_argument("--main-address", help="Address of host 0; several hosts need it.")
    parser.add_argument(
        "--main-port", type=count, help="Port of host 0; several hosts need it. One host takes a free one."
    )
    if SCRIPT_CONFIGS[name] is not TorchConfig:
        default = " (default: cpu; --cuda still puts trainers on GPUs)" if name == "decoupled" else ""
        parser.add_argument("--accelerator", help=f"Accelerator for fabric run, such as cpu or cuda.{default}")
        parser.add_argument("--strategy", help="Strategy for fabric run. (default: ddp from 2 processes on)")
        parser.add_argument("--precision", help="Precision for fabric run, such as bf16-mixed.")
    return parser


def _check_launcher(launch: argparse.Namespace) -> None:
    """Raise a ConfigError for flags of the launcher that cannot work."""
    if launch.devices < 1 or launch.num_nodes < 1:
        raise ConfigError(f"--devices {launch.devices} --num-nodes {launch.num_nodes}: numbers from 1 up are expected")
    if not 0 <= launch.node_rank < launch.num_nodes:
        raise ConfigError(f"--node-rank {launch.node_rank}: a number from 0 to {launch.num_nodes - 1} is expected")
    if launch.num_nodes > 1 and (launch.main_address is None or launch.main_port is None):
        raise ConfigError(f"--num-nodes {launch.num_nodes}: --main-address and --main-port of host 0 are needed too")


def _check_fabric(launch: argparse.Namespace) -> None:
    """Raise a ConfigError for flags of `fabric run` that cannot work here."""
    require_fabric_flags(launch.accelerator, launch.strategy, launch.precision, launch.devices)
    if launch.accelerator in (None, "auto") and launch.devices > 1:
        require_devices(launch.devices)


def _launch_command(config_type: type[Config], launch: argparse.Namespace) -> list[str]:
    """Return Python's arguments that launch a script.

    They are the script itself for one process, else `torchrun` or `fabric run` with the script.
    """
    path = str(script_path(config_type))
    options = {name: getattr(launch, name, None) for name in ("accelerator", "strategy", "precision")}
    processes = launch.devices * launch.num_nodes
    if processes == 1 and not any(options.values()):
        return [path]
    address, port = launch.main_address or "127.0.0.1", launch.main_port or _free_port()
    if config_type is TorchConfig:
        where = [f"--nnodes={launch.num_nodes}", f"--node_rank={launch.node_rank}"]
        where += [f"--master_addr={address}", f"--master_port={port}"]
        return ["-m", "torch.distributed.run", f"--nproc_per_node={launch.devices}", *where, path]
    # player and trainers of the decoupled script make a strategy of their own
    if processes > 1 and config_type is not DecoupledConfig:
        options["strategy"] = options["strategy"] or "ddp"
    where = [f"--num-nodes={launch.num_nodes}", f"--node-rank={launch.node_rank}"]
    where += [f"--main-address={address}", f"--main-port={port}", f"--devices={launch.devices}"]
    chosen = [f"--{name}={value}" for name, value in options.items() if value]
    return ["-m", "lightning.fabric.cli", *where, *chosen, path]


def _free_port() -> int:
    """Return a port of this host that nobody uses at the moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _evaluate(args: list[str]) -> int:
    """Play test episodes with a run's policy, and print the scores."""
    given = _evaluate_parser().parse_args(args)
    if given.episodes < 1:
        raise ConfigError(f"--episodes {given.episodes}: a whole number from 1 up is expected")
    if not 0 <= given.seed < 2**32:
        raise ConfigError(f"--seed {given.seed}: a whole number from 0 to 4294967295 is expected")
    if given.step_limit < 1:
        raise ConfigError(f"--step-limit {given.step_limit}: a whole number from 1 up is expected")
    require_text_path("RUN_DIR", given.run_dir)
    require_text_path("--gif", given.gif)
    require_text_path("--code-dir", given.code_dir)
    if given.code_dir is not None and not os.path.isdir(given.code_dir):
        raise ConfigError(f"--code-dir {given.code_dir}: an existing folder is expected")
    # the environment's code may change the working directory
    run_dir, gif = Path(given.run_dir).absolute(), given.gif and os.path.abspath(given.gif)
    run_dir = run_dir.parent.parent if run_dir.suffix == ".ckpt" else run_dir
    video_dir = str(run_dir / "test_videos") if given.video else ""
    try:
        # environments may print, too, and JSON is to stand alone
        with stdout_on_stderr() if given.json else contextlib.nullcontext():
            env_id, result = _play(given, video_dir, gif)
    except EnvironmentFault as fault:
        print_line(f"error: {fault}", sys.stderr)
        return FAILED
    scores = result.to_dict()
    if given.json:
        print(json.dumps(scores))
    else:
        spread = f"{scores['return_mean']:.1f} +- {scores['return_std']:.1f}"
        print(f"{env_id}: return {spread}, length {scores['length_mean']:.1f}, {given.episodes} episodes")
        if video_dir and not result.unwritten:
            print(f"video: {video_dir}")
    if error := lost_output(sys.stdout):
        print_line(f"error: the scores could not be printed ({error.strerror})", sys.stderr)
    return NOT_ALL_WRITTEN if result.unwritten or error else 0


def _play(given: argparse.Namespace, video_dir: str, gif: str | None) -> tuple[str, TestResult]:
    """Load the policy of a run and play; return the id of its environment, and the result.

    Raises:
        ConfigError: the policy cannot be loaded, or the environment cannot be made.
        EnvironmentFault: the environment failed.
    """
    # these imports load torch, which takes seconds: wrong flags are reported before
    from fabric_ppo.agents.policy import load_agent, own_modules
    from fabric_ppo.envs.ids import look_in, resolve_env_id, where_missing
    from fabric_ppo.rollouts.evaluate import cut_off_text, evaluate
    from fabric_ppo.run.progress import TestProgress
    from fabric_ppo.tools.video import recorded_gif

    if given.code_dir is not None:
        look_in(os.path.abspath(given.code_dir))
        print_line(f"modules of your own are imported from {os.path.abspath(given.code_dir)}", sys.stderr)
    has_own_code = given.own_code or given.code_dir is not None
    policy = load_agent(given.run_dir, own_code=has_own_code)
    if modules := own_modules(policy.spec):
        needs = f"{given.run_dir}: its environment needs {', '.join(modules)}"
        if where := where_missing(modules, Path(given.run_dir)):
            raise ConfigError(f"{needs}, {where}")
        if not has_own_code:
            raise ConfigError(f"{needs}: --own-code imports that")
    # imports the module that registers the environment
    resolve_env_id(policy.spec.env_id, ATARI if policy.spec.is_atari else "")
    options: dict[str, Any] = {"render_mode": given.render, "stochastic": given.stochastic}
    progress = TestProgress("evaluate", given.episodes, True)
    options |= {"step_limit": given.step_limit, "report": progress.update}
    with recorded_gif(gif, video_dir) as recording:
        result = evaluate(policy, given.episodes, given.seed, video_dir=recording.folder, **options)
    if recording.unwritten:
        result = replace(result, unwritten=recording.unwritten)
    if result.cut_off:
        print_line(f"warning: {cut_off_text(result.cut_off, given.episodes, given.step_limit)}", sys.stderr)
    return policy.spec.env_id, result


def _evaluate_parser() -> CommandParser:
    parser = CommandParser("fabric-ppo evaluate")
    parser.description = "Play test episodes with a trained agent, and print their scores."
    parser.add_argument("run_dir", metavar="RUN_DIR", help="Folder of a run, or a checkpoint in it.")
    parser.add_argument("--episodes", type=count, default=100, help="Number of episodes. (default: 100)")
    parser.add_argument("--seed", type=count, default=0, help="Seed of the episodes. (default: 0)")
    limit = f"Steps after which an episode is cut off. (default: {TEST_STEP_LIMIT})"
    parser.add_argument("--step-limit", type=count, default=TEST_STEP_LIMIT, help=limit)
    parser.add_argument("--json", action="store_true", help="Print one JSON object and nothing else.")
    parser.add_argument("--video", action="store_true", help="Record the first episode into RUN_DIR/test_videos.")
    parser.add_argument("--gif", metavar="FILE", help="Record the first episode as a moving picture.")
    parser.add_argument("--render", choices=["human"], help="Show the episodes in a window.")
    parser.add_argument("--stochastic", action="store_true", help="Sample actions instead of the most probable ones.")
    parser.add_argument("--own-code", action="store_true", help="Import the modules that the policy's file names.")
    code_dir = "Import these modules, from this folder first."
    parser.add_argument("--code-dir", metavar="FOLDER", help=code_dir)
    return parser


def _plot(args: list[str]) -> int:
    """Draw the learning curves of runs into a picture."""
    parser = CommandParser("fabric-ppo plot")
    parser.description = "Draw the learning curves of runs into a picture."
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", help="Folders of runs, a curve for each.")
    parser.add_argument("--out", required=True, metavar="FILE", help="Picture to write: .svg, .png or .pdf.")
    given = parser.parse_args(args)
    for run_dir in given.run_dirs:
        require_text_path("RUN_DIR", run_dir)
    require_text_path("--out", given.out)
    from fabric_ppo.tools.plot import plot_runs

    plot_runs([Path(run_dir) for run_dir in given.run_dirs], Path(given.out))
    print(given.out)
    return 0


def _benchmark(args: list[str]) -> int:
    """Train presets over seeds and write their scores."""
    from fabric_ppo.process.launch import cores_per_rank
    from fabric_ppo.tools.suite import SUITES, check_presets, presets_of, run_suite

    parser = CommandParser("fabric-ppo benchmark")
    parser.description = "Train presets with several seeds, test each run, and write a page of scores."
    suites = f"{', '.join(SUITES)}, a preset such as cartpole, a YAML file of flags, or a folder of such files."
    parser.add_argument("suites", metavar="SUITE", nargs="+", help=suites)
    parser.add_argument(
        "--seeds", type=count, default=5, help="Runs of each preset, with seeds from 1 up. (default: 5)"
    )
    parser.add_argument("--jobs", type=count, default=cores_per_rank(), help="Runs side by side. (default: the cores)")
    parser.add_argument(
        "--log-dir", default="logs/benchmark", metavar="DIR", help="Run folders. (default: logs/benchmark)"
    )
    parser.add_argument(
        "--out", default="docs/results.md", metavar="FILE", help="Page to write. (default: docs/results.md)"
    )
    given = parser.parse_args(args)
    if given.seeds < 1 or given.jobs < 1:
        raise ConfigError(f"--seeds {given.seeds} --jobs {given.jobs}: numbers from 1 up are expected")
    require_text_path("--log-dir", given.log_dir)
    require_text_path("--out", given.out)
    presets = presets_of(given.suites)
    check_presets(presets)
    failed = run_suite(presets, given.seeds, given.jobs, Path(given.log_dir), Path(given.out))
    print(given.out)
    return FAILED if failed else 0


def _presets(args: list[str]) -> int:
    """List the presets: name, environment, and the comment that each file begins with."""
    parser = CommandParser("fabric-ppo presets")
    parser.description = "List the presets. In training, --config NAME takes one, and flags override it."
    parser.parse_args(args)
    for name in preset_names():
        print(describe_preset(name))
    return 0
