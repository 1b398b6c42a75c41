"""`export`: a trained agent as ONNX or TorchScript."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from fabric_ppo.process.console import print_line
from fabric_ppo.process.errors import FAILED, ConfigError, EnvironmentFault
from fabric_ppo.process.files import require_text_path
from fabric_ppo.tools.command_parser import CommandParser, count
from fabric_ppo.tools.help import Entry

if TYPE_CHECKING:
    from fabric_ppo.tools.export import Exported

ENTRY = Entry("export RUN_DIR --to FORMAT --out FILE", "Write a trained agent as ONNX or TorchScript.")
"""Row of this command on the page of all."""


def run(args: list[str]) -> int:
    """Write the policy of a run for other programs, and say how it was verified."""
    given = export_parser().parse_args(args)
    for name, path in (("RUN_DIR", given.run_dir), ("--out", given.out), ("--code-dir", given.code_dir)):
        require_text_path(name, path)
    if given.code_dir is not None and not os.path.isdir(given.code_dir):
        raise ConfigError(f"--code-dir {given.code_dir}: an existing folder is expected")
    # these imports load torch, which takes seconds: wrong flags are reported before
    from fabric_ppo.envs.ids import look_in
    from fabric_ppo.tools.export import export

    if given.code_dir is not None:
        look_in(os.path.abspath(given.code_dir))
        print_line(f"modules of your own are imported from {os.path.abspath(given.code_dir)}", sys.stderr)
    options = {"opset": given.opset, "verify": given.verify, "verify_steps": given.verify_steps}
    own_code = given.own_code or given.code_dir is not None
    try:
        print(_report(export(given.run_dir, given.to, given.out, **options, own_code=own_code), given.verify))
    except EnvironmentFault as fault:
        print_line(f"error: {fault}", sys.stderr)
        return FAILED
    return 0


def _report(exported: Exported, verify: str) -> str:
    """Return the lines that are printed: files, inputs and outputs, and the comparison."""
    interface, agreement = exported.interface, exported.agreement
    verified = "not verified"
    if agreement is not None:
        origin = "of test episodes" if verify == "episodes" else "drawn from their space"
        differences = ", ".join(f"{name} {each:.1e}" for name, each in agreement.largest.items())
        ties = f", {agreement.ties} of them decided by rounding" if agreement.ties else ""
        verified = (
            f"{agreement.observations:,} observations {origin}: the same actions{ties}; differences {differences}"
        )
    lines = [
        f"policy   {exported.path}",
        f"inputs   {', '.join(map(str, interface.inputs))} (noise: {interface.noise})",
        f"outputs  {', '.join(map(str, interface.outputs))}",
        f"verified {verified}" if agreement else verified,
        f"play     python {exported.program}",
    ]
    return "\n".join(lines)


def export_parser() -> CommandParser:
    """Return the parser of this command's flags."""
    parser = CommandParser("fabric-ppo export")
    parser.description = "Write a trained agent as a file for other programs, and a program that plays with it."
    parser.add_argument("run_dir", metavar="RUN_DIR", help="Folder of a run, or a checkpoint in it.")
    parser.add_argument("--to", required=True, choices=["onnx", "torchscript"], help="Format of the file.")
    out = "File to write, .onnx, or .pt, .pth, .ts; the program beside NAME.onnx is NAME_onnx_run.py."
    parser.add_argument("--out", required=True, metavar="FILE", help=out)
    parser.add_argument("--opset", type=count, help="Version of ONNX's operators, 18 to 25. (default: 18)")
    verify = "Observations to compare on: of test episodes, drawn from their space, or none. (default: episodes)"
    parser.add_argument("--verify", choices=["episodes", "space", "none"], default="episodes", help=verify)
    parser.add_argument("--verify-steps", type=count, default=1000, help="Number of them. (default: 1000)")
    parser.add_argument("--own-code", action="store_true", help="Import the modules that the policy's file names.")
    code_dir = "Import these modules, from this folder first."
    parser.add_argument("--code-dir", metavar="FOLDER", help=code_dir)
    return parser
