"""Who is silent: an engine that neither answers nor dies is found, and taken for dead.

A process that dies closes its connection. One that hangs, in a kernel that never ends, a lock, a machine that swaps,
keeps it open, and its requests would wait for ever. So whoever has said nothing for half of the time that it may be
silent is asked (`Ping`), and who has not answered in the other half is given up. Anything that is heard is an answer;
the engine's loop gives it between two steps, and not a thread beside it, which may be well while the loop hangs.

The time must be longer than the longest step. The first ones compile kernels and capture graphs, so the default is
minutes, where a step takes milliseconds.
"""

from collections.abc import Callable, Iterable
from numbers import Real

SILENT = 120.0
"""Seconds that an engine may be silent, where nobody says."""


def check_silent_after(value: float | None) -> None:
    """ValueError where it is neither seconds above 0 nor None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real) or not value > 0):
        raise ValueError(f"silent_after must be seconds above 0, or None where engines may hang, got {value!r}")


class Pulse:
    """When each engine was heard last.

    Parameters
    ----------
    names
        Of the engines.
    silent_after
        Seconds without a word after which one counts as dead. None: nobody is asked, and nobody is.
    clock
        Seconds.

    ValueError where `silent_after` is not above 0.
    """

    def __init__(self, names: Iterable[str], silent_after: float | None, clock: Callable[[], float]):
        check_silent_after(silent_after)
        self._half, self._clock = None if silent_after is None else silent_after / 2, clock
        self._heard = dict.fromkeys(names, clock())
        self._asked: dict[str, float] = {}

    def heard(self, name: str) -> None:
        """It has said something."""
        self._heard[name] = self._clock()
        self._asked.pop(name, None)

    def look(self, alive: Iterable[str]) -> tuple[list[str], list[str]]:
        """Whom of the living to ask now, and who has not answered. To be called when all that was said is taken in: if
        nobody has listened for long, that says nothing about who was asked before."""
        if self._half is None:
            return [], []
        now, ask, silent = self._clock(), [], []
        for name in alive:
            if name in self._asked:
                if now - self._asked[name] >= self._half:
                    silent.append(name)
            elif now - self._heard[name] >= self._half:
                self._asked[name] = now
                ask.append(name)
        return ask, silent
