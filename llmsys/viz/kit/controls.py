"""The fields of a stepper: a list to choose from, and a line to type into."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Choice:
    """A field with a list of options, label -> value (numbers or strings). `start` is chosen first; if nothing is said,
    the first of them."""

    name: str
    label: str
    options: Mapping[str, Any]
    start: Any = None

    def __post_init__(self):
        if self.start is None:
            object.__setattr__(self, "start", next(iter(self.options.values())))
        elif self.start not in self.options.values():
            known = ", ".join(repr(value) for value in self.options.values())
            raise ValueError(f"{self.name} must be one of {known}; got {self.start!r}")


@dataclass(frozen=True)
class Entry:
    """A field to type into. Its text goes to `frames`, which may refuse it: a ValueError that says what it wants."""

    name: str
    label: str
    start: str = ""
    placeholder: str = ""
