"""`presets`: their names, environments and what each is for."""

from __future__ import annotations

from fabric_ppo.tools.command_parser import CommandParser
from fabric_ppo.tools.help import Entry
from fabric_ppo.tools.locate import describe_preset, preset_names

ENTRY = Entry("presets", "List the presets, which --config takes by name.")
"""Row of this command on the page of all."""


def run(args: list[str]) -> int:
    """List the presets: name, environment, and the comment that each file begins with."""
    parser = CommandParser("fabric-ppo presets")
    parser.description = "List the presets. In training, --config NAME takes one, and flags override it."
    parser.parse_args(args)
    for name in preset_names():
        print(describe_preset(name))
    return 0
