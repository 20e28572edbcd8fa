"""The fields of a stepper: a list to choose from, and a line to type into."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Choice:
    """A list to choose from.

    `name` is that of the argument which gets the value, `label` what the reader sees beside the list. `options` are
    label -> value, numbers or strings. `start` is the value chosen at first, by default the first option's. With
    `slider` it is shown as a slider over the options, for values that grow.

    Raises ValueError where `start` is none of the values.
    """

    name: str
    label: str
    options: Mapping[str, Any]
    start: Any = None
    slider: bool = False

    def __post_init__(self):
        if self.start is None:
            object.__setattr__(self, "start", next(iter(self.options.values())))
        elif self.start not in self.options.values():
            known = ", ".join(repr(value) for value in self.options.values())
            raise ValueError(f"{self.name} must be one of {known}; got {self.start!r}")


@dataclass(frozen=True)
class Entry:
    """A line to type into.

    `name` is that of the argument which gets the text, `label` what the reader sees beside the line. Whoever makes the
    frames may refuse a text with a ValueError that says what is expected; the reader then sees its message.
    """

    name: str
    label: str
    start: str = ""
    placeholder: str = ""
