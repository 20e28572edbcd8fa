"""Predict, then measure: write the number down first, and see by how much you were off.

    predict("02.overflow", 88.7)                 # the learner's guess: a number, or None while there is none
    ...
    measured("02.overflow", largest, "")         # draws the guess beside what was measured

A guess is kept in the progress file, so that it is still there after a restart. An unanswered prediction stops nothing.
The two may be in different units of one kind ("ms" and "s", "GiB" and "MB"); the guess is then shown in the
measurement's.
"""

import math
import numbers
from dataclasses import dataclass

from llmsys.course import display
from llmsys.course.workspace import progress

_SCALES = {
    "time": {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0},
    "size": {"B": 1, "byte": 1, "bytes": 1}
    | {f"{prefix}B": 1000**i for i, prefix in enumerate(("k", "M", "G", "T"), 1)}
    | {f"{prefix}iB": 1024**i for i, prefix in enumerate(("K", "M", "G", "T"), 1)},
    "work": {f"{prefix}FLOP{s}": 1000**i for i, prefix in enumerate(("", "k", "M", "G", "T", "P")) for s in ("", "s")},
}
_SCALES["bandwidth"] = {f"{unit}/s": scale for unit, scale in _SCALES["size"].items()}
_SCALES["throughput"] = {f"{unit}/s": scale for unit, scale in _SCALES["work"].items()}

_GUESS, _MEASURED = "#e69f00", "#0072b2"  # Okabe and Ito's orange and blue


@dataclass(frozen=True)
class Prediction:
    """A guess as it was written down; `guess` is None where there is none yet."""

    id: str
    guess: float | None
    unit: str

    def __repr__(self) -> str:
        if self.guess is None:
            return f"{self.id}: no guess yet. Put a number in place of None, and run the cell again."
        return f"{self.id}: you say {figure(self.guess, self.unit)}."

    def _repr_html_(self) -> str:
        text = repr(self).partition(": ")[2]
        return display.note_html("Prediction", text[0].upper() + text[1:])


@dataclass(frozen=True)
class Comparison:
    """A measurement beside the guess, both in `unit`."""

    id: str
    guess: float | None
    value: float
    unit: str

    @property
    def gap(self) -> str:
        """How far apart they are, in words."""
        if self.guess is None:
            return f"measured {figure(self.value, self.unit)}. You wrote down no guess for this one."
        return (
            f"you said {figure(self.guess, self.unit)}; measured {figure(self.value, self.unit)}"
            f"{_distance(self.guess, self.value)}."
        )

    def __repr__(self) -> str:
        return f"{self.id}: {self.gap}"

    def _repr_html_(self) -> str:
        values = [("you said", self.guess, _GUESS)] if self.guess is not None else []
        values.append(("measured", self.value, _MEASURED))
        top = max((abs(v) for _, v, _ in values if math.isfinite(v)), default=0) or 1
        rows = [(label, figure(v, self.unit), abs(v) / top if math.isfinite(v) else 1, c) for label, v, c in values]
        return display.bars_html("Prediction and measurement", rows, self.gap[0].upper() + self.gap[1:])


def predict(id: str, guess: float | None = None, unit: str = "") -> Prediction:
    """Write a guess down: a number in `unit`, or None (or `...`) while you have none, which keeps an earlier one.

    Raises
    ------
    ValueError
        The guess is not a number.
    """
    number = None if guess is None or guess is ... else _number(guess, f"the guess for {id!r}")
    kept = progress.prediction(id, number, unit)
    return Prediction(id, kept.guess, kept.unit)


def measured(id: str, value: float, unit: str = "") -> Comparison:
    """Show what was measured beside the guess of that id.

    Raises
    ------
    ValueError
        The value is not a number, or its unit is of another kind than the guess's.
    """
    value = _number(value, f"the measurement of {id!r}")
    kept = progress.load().predictions.get(id)
    guess = kept.guess if kept else None
    if guess is not None:
        guess = convert(guess, kept.unit, unit, what=f"the prediction {id!r}")
    if kept is not None:
        progress.measurement(id, convert(value, unit, kept.unit, what=f"the measurement {id!r}"))
    return Comparison(id, guess, value, unit)


def convert(value: float, unit: str, to: str, *, what: str = "the value") -> float:
    """`value` in the unit `to`. Raises ValueError where the two are not of one kind."""
    if unit == to:
        return value
    for scale in _SCALES.values():
        if unit in scale and to in scale:
            return value * scale[unit] / scale[to]
    raise ValueError(f"{what} is in {unit or 'no unit'!r}, which cannot be turned into {to or 'no unit'!r}")


def figure(value: float, unit: str = "") -> str:
    """A number with its unit, as short as it may be: 12.5 ms, 1,048,576 B, 3.2e-09."""
    if value == 0 or 1e-3 <= abs(value) < 1e15:
        whole = float(value).is_integer() and abs(value) < 1e12
        text = f"{int(value):,}" if whole else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.3g}"
        if not whole and 1e3 <= abs(value) < 1e4:
            text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}"
    return f"{text} {unit}".strip()


def _distance(guess: float, value: float) -> str:
    if guess == value:
        return ": exactly"
    if guess > 0 and value > 0 and math.isfinite(guess) and math.isfinite(value):
        ratio = max(guess, value) / min(guess, value)
        if ratio < 1.005:
            return ": within 0.5%"
        size = f"{100 * (ratio - 1):.0f}%" if ratio < 1.2 else f"{ratio:.3g}×" if ratio < 1000 else f"{ratio:,.0f}×"
    elif math.isfinite(value - guess):
        size = figure(abs(value - guess))
    else:
        return ""
    return f": {size} {'more' if value > guess else 'less'}"


def _number(value: object, what: str) -> float:
    if hasattr(value, "item") and not isinstance(value, numbers.Number):
        try:
            value = value.item()  # a tensor or an array of one element
        except (RuntimeError, ValueError):
            pass
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value):
        raise ValueError(f"{what} must be a number (or None while you have none), got {value!r}")
    return int(value) if isinstance(value, numbers.Integral) else float(value)
