"""`train`: the flags are checked, then a script is launched on one process or several."""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import sys
from typing import Any

from fabric_ppo.config import SCRIPT_CONFIGS, Config, DecoupledConfig, TorchConfig, script_file
from fabric_ppo.process.command import TRAIN_VARIABLE
from fabric_ppo.process.errors import BAD_INPUT, ConfigError, flag
from fabric_ppo.process.hold import hold_signals, release_signals
from fabric_ppo.process.interfaces import interface_towards
from fabric_ppo.process.tasks import require_one_task
from fabric_ppo.run.fabric_flags import require_devices, require_fabric_flags
from fabric_ppo.run.folder import require_usable, started_with
from fabric_ppo.run.resolve import resolve
from fabric_ppo.tools.command_parser import CommandParser, count
from fabric_ppo.tools.flags import parse_flags, resumed_folder
from fabric_ppo.tools.help import ABOUT, HELP, HELP_ALL, Entry, Section, page
from fabric_ppo.tools.locate import script_path

ENTRY = Entry(
    f"train {{{','.join(SCRIPT_CONFIGS)}}} [--devices N] [FLAGS]", "Check the flags, then launch a training script."
)
"""Row of this command on the page of all."""
_LAUNCHER = ("-m", "fabric_ppo.tools.launcher")


def _train_page() -> str:
    """Return the page of `train --help`."""
    scripts = [Entry(name, f"{script_file(kind)}, {ABOUT[kind.script]}") for name, kind in SCRIPT_CONFIGS.items()]
    about = "Check the flags, then launch a training script on one process or several."
    more = "fabric-ppo train torch --help shows the flags that most runs need, --help-all shows all of them."
    usage = "fabric-ppo train SCRIPT [--devices N] [FLAGS]"
    return page(usage, about, [Section("Scripts", scripts)], more)


def run(args: list[str]) -> int:
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
    parser = launcher_parser(name)
    launch, flags = parser.parse_known_args(rest)
    if (run_dir := resumed_folder(flags, {})) is not None:
        parser.set_defaults(**_launcher_of_run(run_dir, config_type))
        launch, flags = parser.parse_known_args(rest)
    _check_launcher(launch)
    typed = _launcher_words(launch, name)
    require_one_task(launch.num_nodes)
    if config_type is DecoupledConfig:
        # its trainers find their GPUs themselves; `fabric run` would want one for every process
        launch.accelerator = launch.accelerator or "cpu"
    launcher = Section("Launcher", parser.flag_entries())
    config = parse_flags(config_type, flags, parser.prog, [launcher])
    if config_type is DecoupledConfig and launch.devices * launch.num_nodes < 2:
        needed = "a player and at least one trainer are needed, as in fabric-ppo train decoupled --devices 2"
        raise ConfigError(f"--devices {launch.devices}: {needed}")
    config = resolve(config, launch.devices * launch.num_nodes, launch.devices)
    if config_type is not TorchConfig:
        _check_fabric(launch)
    require_usable(config)
    sys.stdout.flush()
    # without it torchrun prints a warning; the script sets its own number of threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    env = {**os.environ, TRAIN_VARIABLE: shlex.join([name, *typed])}
    if launch.num_nodes > 1:
        env |= _interfaces(launch.main_address)
    hold_signals()  # until that program handles them
    try:
        os.execve(sys.executable, [sys.executable, *launch_command(config_type, launch), *flags], env)
    finally:  # it has not begun
        release_signals()


def _interfaces(address: str) -> dict[str, str]:
    """Return the variables that name the network interface towards host 0, of those that are not set."""
    if not (found := interface_towards(address)):
        return {}
    return {name: found for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name not in os.environ}


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


def _launcher_words(launch: argparse.Namespace, name: str) -> list[str]:
    """Return the launcher's flags that are not at their defaults, as words of a command line."""
    defaults = vars(launcher_parser(name).parse_known_args([])[0])
    given = {each: value for each, value in vars(launch).items() if value != defaults[each]}
    return [f"{flag(each)}={value}" for each, value in given.items()]


def launcher_parser(name: str) -> CommandParser:
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


def launch_command(config_type: type[Config], launch: argparse.Namespace) -> list[str]:
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
        return [*_LAUNCHER, "torch.distributed.run", f"--nproc_per_node={launch.devices}", *where, path]
    # player and trainers of the decoupled script make a strategy of their own
    if processes > 1 and config_type is not DecoupledConfig:
        options["strategy"] = options["strategy"] or "ddp"
    where = [f"--num-nodes={launch.num_nodes}", f"--node-rank={launch.node_rank}"]
    where += [f"--main-address={address}", f"--main-port={port}", f"--devices={launch.devices}"]
    chosen = [f"--{name}={value}" for name, value in options.items() if value]
    return [*_LAUNCHER, "lightning.fabric.cli", *where, *chosen, path]


def _free_port() -> int:
    """Return a port of this host that nobody uses at the moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
