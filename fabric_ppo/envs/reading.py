"""Reading of what environments return: observations as arrays, rewards as numbers, both checked.

The text of each ValueError goes on after "step returned".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.process.errors import USER_ERRORS, first_line

LARGEST = float(np.finfo(np.float32).max)
"""Greatest number of float32, in which networks compute."""
_LARGEST_SQUARE = LARGEST**2
_LONGEST_TEXT = 60
_INTEGERS = (int, np.int64)


class Reader:
    """A function from an observation without parts to its array, as its space declares it."""

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: str,
        choices: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
        name: str = "",
    ) -> None:
        """Describe what is read.

        Args:
            shape: of one observation.
            dtype: of its array.
            choices: least and greatest value of each entry, `[*shape]`; None where any number may
                come.
            name: of the part of a nested observation; empty for a whole one.
        """
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._is_float = self._dtype.kind == "f"
        self._is_wide = self._is_float and self._dtype.itemsize > 2
        self._choices = choices
        # a single choice is compared as a Python number, which takes a tenth of the time
        self._range = (int(choices[0]), int(choices[1])) if choices is not None and shape == () else None
        self._that_is = f"an observation whose {name} is" if name else "an observation that is"

    def __call__(self, obs: Any) -> Any:
        """Return `obs` as an array of the space's shape and dtype; a single choice as it came.

        Raises:
            ValueError: it is no array of numbers, has another shape, has numbers that the dtype or
                the network's float32 cannot hold, or a choice that the space does not have.
        """
        if self._range is not None and type(obs) in _INTEGERS and self._range[0] <= obs <= self._range[1]:
            return obs
        if type(obs) is not np.ndarray or obs.dtype is not self._dtype or obs.shape != self._shape:
            obs = self.array(obs)
            if obs.shape != self._shape:
                raise ValueError(f"{self._that_is} of shape {obs.shape}; {self._shape} is expected")
        # written out for the usual case, which is that of every step
        if not self._is_float or not float(np.vdot(obs, obs)) <= _LARGEST_SQUARE:
            self.require_valid(obs)
        return obs

    def array(self, values: Any) -> NDArray[Any]:
        """Return one observation or more, of any shape, as an array of the space's dtype.

        Raises:
            ValueError: it is no array of numbers, or has numbers that the dtype cannot hold.
        """
        try:
            array = np.asarray(values)
        except USER_ERRORS as error:  # lists of unequal lengths; objects may raise anything
            raise ValueError(f"{self._that_is} no array ({first_line(error)})") from None
        if array.dtype == self._dtype:
            return array
        if array.dtype.kind not in "biuf":
            shown = f"{shorten(repr(values))} ({type(values).__name__})"
            raise ValueError(f"{self._that_is} {shown}; numbers of dtype {self._dtype} are expected")
        return self._cast(array)

    def _cast(self, array: NDArray[Any]) -> NDArray[Any]:
        """Convert numbers of another dtype; raise a ValueError if that changes more than rounding."""
        if self._is_wide and all_finite(array):  # the usual case: float64 for float32
            return array.astype(self._dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # found below, and named
            cast = array.astype(self._dtype)
        if self._is_float:
            if not all_finite(cast):
                raise self._not_finite(array, cast)
        elif not np.can_cast(array.dtype, self._dtype) and (changed := cast != array).any():
            lost = array[changed][0]
            if self._choices is not None:
                raise ValueError(f"{self._that_is} {lost!s}; whole numbers are expected")
            raise ValueError(
                f"{self._that_is} of dtype {array.dtype}, of which the declared {self._dtype} cannot hold {lost!s}; "
                f"declare {array.dtype}, or return {self._dtype}"
            )
        return cast

    def require_valid(self, array: NDArray[Any]) -> None:
        """Check the numbers of `array [..., *shape]`, which has the space's dtype.

        Raises:
            ValueError: some are not finite as float32, or are choices that the space does not have.
        """
        if self._is_float:
            if not all_finite(array):
                raise self._not_finite(array, array)
        elif self._choices is not None:
            least, most = self._choices
            outside = (array < least) | (array > most)
            if np.count_nonzero(outside):
                place = _first(outside)
                least, most = (np.broadcast_to(each, array.shape) for each in self._choices)
                raise ValueError(
                    f"{self._that_is} {array[place]!s}{in_entry(place)}; "
                    f"a whole number from {least[place]} to {most[place]} is expected"
                )

    def _not_finite(self, array: NDArray[Any], cast: NDArray[Any]) -> ValueError:
        """Return an error that names the first number of `array` that is not finite in `cast`."""
        place = find_not_finite(cast)
        kind = "float16" if self._dtype == np.float16 else "float32"
        as_kind = f" as {kind}" if np.isfinite(array[place]) else ""
        return ValueError(f"{self._that_is} not finite{as_kind}: {array[place]!s}{in_entry(place)}")


def _first(where: NDArray[np.bool_]) -> tuple[int, ...]:
    """Return the indices of the first true entry."""
    return tuple(int(index) for index in np.argwhere(where)[0])


def in_entry(place: tuple[int, ...]) -> str:
    """Return words for the place of an entry in an array; none for a scalar."""
    return f" in entry {list(place)}" if place else ""


def all_finite(values: Any) -> bool:
    """Return whether every entry is finite as float32, in which networks compute."""
    # a sum of squares is five times cheaper than isfinite().all(); NaN is not at most anything
    if float(np.vdot(values, values)) <= _LARGEST_SQUARE:
        return True
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.asarray(values, np.float32)).all())


def find_not_finite(values: NDArray[Any]) -> tuple[int, ...]:
    """Return the indices of the first entry that is not finite as float32; there must be one."""
    with np.errstate(over="ignore"):
        return _first(~np.isfinite(values.astype(np.float32)))


def read_reward(reward: Any) -> float:
    """Return a reward as a float: a number, or an array of one number.

    Raises:
        ValueError: it is neither, or not finite as float32, which is what a rollout keeps.
    """
    try:
        # bool and np.float64 are among these
        number = float(reward) if isinstance(reward, (float, int)) else read_number(reward)
    except OverflowError:
        number = float("inf")
    except USER_ERRORS:
        raise ValueError(f"reward {shorten(repr(reward))} ({type(reward).__name__}); a number is expected") from None
    if not -LARGEST <= number <= LARGEST:
        raise ValueError(f"reward {shorten(str(reward))}, which is not finite as float32")
    return number


def read_flag(flag: Any, name: str) -> bool:
    """Return `terminated` or `truncated` as a bool: a number, an array of one number, or None.

    Args:
        flag: what the environment returned.
        name: of the flag, for the error's text.

    Raises:
        ValueError: it is none of these: the text "False", for instance, would count as true.
    """
    if flag is None or isinstance(flag, (bool, np.bool_)):
        return bool(flag)
    try:
        number = float(flag) if isinstance(flag, (float, int)) else read_number(flag)
    except USER_ERRORS:
        number = float("nan")
    if number != number:
        raise ValueError(f"{name} {shorten(repr(flag))} ({type(flag).__name__}); True or False is expected")
    return number != 0


def read_tuple(answer: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """Return what `reset` or `step` returned, which must have a value for each of `names`.

    Raises:
        ValueError: it has not.
    """
    if isinstance(answer, (tuple, list)) and len(answer) == len(names):
        return tuple(answer)
    what = f"{len(answer)} values" if isinstance(answer, tuple) else f"a single {type(answer).__name__}"
    raise ValueError(f"{what}; {', '.join(names[:-1])} and {names[-1]} are expected")


def read_number(value: Any) -> float:
    """Return the number that a scalar, an array of size 1 or another object stands for.

    Raises:
        TypeError: it stands for none.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.kind not in "biuf" or value.size != 1:
            raise TypeError
        return float(value.item())
    # a tensor, a fraction; not a text, from which float() reads a number
    if not hasattr(value, "__float__"):
        raise TypeError
    return float(value)


def shorten(text: str) -> str:
    """Return a text as one line of bounded length."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."
