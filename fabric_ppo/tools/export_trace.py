"""The reason why an agent cannot be exported, in one line; and silence while PyTorch exports it."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator

from fabric_ppo.process.errors import first_line

_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_PLACE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\w+)\n')
_BY_VALUES = "GuardOnDataDependentSymNode"
"""Name of the error where a module goes one way or another by the values of a tensor."""


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep what PyTorch's exporters print, log and warn of from being seen."""
    before, nowhere = logging.root.manager.disable, io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def reason_of(error: BaseException) -> str:
    """Return why a module could not be exported, and at which line of code."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = _COLORS.sub("", str(error))
    places = list(_PLACE.finditer(text))
    where = f", in {places[-1]['file']}, line {places[-1]['line']}" if places else ""
    if type(error).__name__ == _BY_VALUES:
        return f"its control flow depends on the values of an observation{where}"
    return f"{type(error).__name__}: {_COLORS.sub('', first_line(error))}{where}"
