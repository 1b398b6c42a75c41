"""What can go wrong, and how it is said."""

from __future__ import annotations

_LONGEST_LINE = 1500


class ConfigError(ValueError):
    """Something that the user can get wrong: one line that names it and says what would be right."""

    def __init__(self, message: str) -> None:
        """Take `message`, which may hold anything: escape what is not printable, shorten what is long."""
        if len(message) > _LONGEST_LINE:
            message = f"{message[: _LONGEST_LINE // 2]} ... {message[-_LONGEST_LINE // 2 :]}"
        super().__init__("".join(each if each.isprintable() else repr(each)[1:-1] for each in message))


class LostContactError(RuntimeError):
    """Another rank has died or does not answer: it is that rank that has the story."""


class StoppedBySignal(BaseException):
    """A signal asked this run to stop, and everything that it needs to go on is saved.

    No Exception: it comes up anywhere, also inside code that takes what it catches for an environment's fault.
    """


class NotAllWrittenError(Exception):
    """The run is done, but something could not be written; the message says what."""


class EnvironmentFault(RuntimeError):
    """An environment raised, died or returned something that is not finite; the message names it and its episode."""


class TrainingError(RuntimeError):
    """Training cannot go on: something is not finite."""


def first_line(error: BaseException) -> str:
    """What an error says, in a line; its name if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def flag(name: str) -> str:
    """`num_envs` -> `--num-envs`."""
    return "--" + name.replace("_", "-")
