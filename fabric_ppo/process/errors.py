"""Exceptions that end a run, their wording, and the exit statuses of a rank."""

from __future__ import annotations

FAILED, BAD_INPUT, NOT_ALL_WRITTEN, STOPPED_BY_SIGNAL = 1, 2, 3, 75
"""Exit statuses of a rank besides 0."""
INTERRUPTED = 130
"""Exit status of a rank that is interrupted twice, and of other commands than `train` after one Ctrl-C."""

_LONGEST_LINE = 1500
_LONGEST_REASON = 400

USER_ERRORS = (Exception, SystemExit)
"""Errors that code of the user's own may raise: it may call `sys.exit`, too."""


class ConfigError(ValueError):
    """An invalid input: one line that names the input and the accepted values.

    Example:
        >>> from fabric_ppo import Config, ConfigError
        >>> try:
        ...     Config(gamma=2)
        ... except ConfigError as error:
        ...     print(error)
        --gamma 2: a number from 0 to 1 is expected
    """

    def __init__(self, message: str) -> None:
        """Take any text: unprintable characters are escaped, a long text is cut in the middle."""
        super().__init__(one_line(message))


class DoesNotRenderError(ConfigError):
    """An environment that does not render in the requested mode."""

    def __init__(self, env_id: str, mode: str) -> None:
        """Take the environment's id, and the mode of `gymnasium.make`."""
        self.mode = mode
        super().__init__(f"{env_id} does not render {mode}")


class HubError(ConnectionError):
    """A failure of the network, or of the Hugging Face Hub, in one line: another try may succeed."""

    def __init__(self, message: str) -> None:
        """Take any text, as a ConfigError does."""
        super().__init__(one_line(message))


class EnvironmentFault(RuntimeError):
    """An environment that raised, died or returned a value that is not finite; the message names it.

    Example:
        >>> import gymnasium
        >>> from fabric_ppo import Config, EnvironmentFault, train
        >>> class Broken(gymnasium.Env):
        ...     observation_space = action_space = gymnasium.spaces.Discrete(2)
        ...     def reset(self, *, seed=None, options=None):
        ...         raise RuntimeError("no door")
        >>> gymnasium.register("Broken-v0", Broken)
        >>> try:
        ...     train(Config(env_id="Broken-v0"), verbose=False)
        ... except EnvironmentFault as error:
        ...     print("no door" in str(error))
        True
    """


class TrainingError(RuntimeError):
    """A loss, gradient or weight that is not finite: the training has stopped.

    The folder has a checkpoint from before that update, unless it was the first.

    Example:
        >>> from fabric_ppo import Config, TrainingError, train
        >>> try:
        ...     train(Config(learning_rate=1e30, num_steps=32, total_timesteps=1024), verbose=False)
        ... except TrainingError as error:
        ...     print("finite" in str(error))
        True
    """


class LostContactError(RuntimeError):
    """Another rank that died or does not answer; the output of that rank shows the cause."""


class StoppedBySignal(BaseException):
    """The orderly end of a run after a signal; its state is saved.

    Not an Exception: it may be raised anywhere, also inside code that treats every Exception as an
    environment's fault.
    """


class NotAllWrittenError(Exception):
    """The end of a run that is done, but could not write everything; the message names the files.

    The run's folder has the results that could be written.

    Example:
        >>> from fabric_ppo import Config, NotAllWrittenError, train
        >>> try:
        ...     run = train(Config(num_steps=32, total_timesteps=64, test_episodes=1), verbose=False)
        ... except NotAllWrittenError as error:
        ...     print(error)  # such as: the disk is full
    """


def one_line(text: str, longest: int = _LONGEST_LINE) -> str:
    """Return a text with unprintable characters escaped; a long one is cut in the middle."""
    if len(text) > longest:
        text = f"{text[: longest // 2]} ... {text[-longest // 2 :]}"
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def reason_line(text: str) -> str:
    """Return the text of another library's error as a part of a line: its lines joined, and cut.

    A failed SQL statement is left out.
    """
    return one_line(" ".join(text.split("[SQL:")[0].split()), _LONGEST_REASON)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type's name where it has no text."""
    return (_text(error).strip() or type(error).__name__).splitlines()[0]


def describe_error(error: BaseException) -> str:
    """Return the type and text of an error: "ValueError: text"; the text may have several lines."""
    return f"{type(error).__name__}: {_text(error)}"


def _text(error: BaseException) -> str:
    """Return an error's text; empty if computing it raises, too."""
    try:
        return str(error)
    except USER_ERRORS:
        return ""


def flag(name: str) -> str:
    """Return the flag of a Config's field: `num_envs` -> `--num-envs`."""
    return "--" + name.replace("_", "-")
