"""A run: its settings, its steps, and both as JSON in each checkpoint, so that it can go on.

What comes back from JSON is distrusted, key by key. A disk that failed, or an editor, leaves files that are JSON and
hold anything; a run that went on from them would be another run, or would end with an error about something else.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from numbers import Real
from operator import index
from pathlib import Path
from reprlib import repr as short
from typing import Any

import torch
from torch import nn

from llmsys.training.corpus import Corpus

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run. The first group decides the numbers: a run resumes with the same ones only.

    Numbers may be of any library; they are kept as Python's, which JSON can hold.
    """

    steps: int = 200
    batch: int = 4  # sequences in a batch, B
    context: int = 256  # tokens in a sequence, T
    accumulate: int = 1  # batches in a step
    learning_rate: float = 1e-4  # the highest
    final_rate: float = 0.1  # the last, as a part of the highest
    warmup: int | None = None  # steps until the highest; None: 10, or a tenth of fewer than 100
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float | None = 1.0  # the longest gradient; None for any
    dtype: str = "float32"  # what the model computes in; "bfloat16" keeps fp32 masters
    seed: int = 0  # of the order of the batches

    evaluate_every: int = field(default=50, metadata={"free": True})  # steps between held-out losses
    evaluate_batches: int = field(default=8, metadata={"free": True})  # batches that a held-out loss is the mean of
    save_every: int = field(default=100, metadata={"free": True})  # steps between checkpoints
    keep: int = field(default=2, metadata={"free": True})  # checkpoints that are kept, the newest

    def __post_init__(self):
        for name, value in _plain(vars(self)).items():
            object.__setattr__(self, name, value)
        counts = "steps batch context accumulate evaluate_every evaluate_batches save_every keep".split()
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup must be from 0 to steps = {self.steps}, got {self.warmup}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip must be a positive number, or None for no limit, got {self.clip}")
        if not 0 <= self.final_rate <= 1:
            raise ValueError(f"final_rate must be from 0 to 1, a part of learning_rate, got {self.final_rate}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers from 0 to below 1, got {self.betas}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be 0 or a positive number, got {self.weight_decay}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {short(self.dtype)}")

    @property
    def warmup_steps(self) -> int:
        return min(10, self.steps // 10) if self.warmup is None else self.warmup


@dataclass(frozen=True)
class Step:
    """One step of a run: its losses, its learning rate and its time."""

    number: int  # counted from 1
    loss: float  # of the next token, the mean over its batches, before its update
    learning_rate: float
    gradient_norm: float  # before clipping
    seconds: float
    terms: dict[str, float] = field(default_factory=dict)  # further losses that the model added, by name


@dataclass
class Run:
    """What `train` did, from the first step on, those before a resumption included."""

    model: nn.Module = field(repr=False)
    config: TrainConfig
    steps: list[Step] = field(default_factory=list, repr=False)
    held_out: dict[int, float] = field(default_factory=dict)  # loss by how many steps had been taken
    checkpoint: Path | None = None  # the last one
    stopped: bool = False  # by `should_stop`, before the last step

    def go_on(self, saved: "Saved", checkpoint: Path) -> None:
        """Take over the steps of the run that wrote a checkpoint."""
        self.steps, self.held_out, self.checkpoint = saved.steps, saved.held_out, checkpoint

    @property
    def losses(self) -> list[float]:
        """The loss of each step, the first step's first."""
        return [step.loss for step in self.steps]

    @property
    def tokens_per_second(self) -> float:
        """Tokens trained on in a second, in the median of the last 50 steps."""
        seconds = sorted(step.seconds for step in self.steps[-50:])
        return self.config.batch * self.config.context * self.config.accumulate / seconds[len(seconds) // 2]


@dataclass(frozen=True)
class Saved:
    """What a checkpoint knows of the run that wrote it."""

    config: TrainConfig
    steps: list[Step]
    held_out: dict[int, float]
    corpus: Mapping[str, Any]  # its name, how many files, and the digest

    @property
    def files(self) -> int:
        """How many files the corpus was made of."""
        return self.corpus["files"]


def to_json(run: Run, corpus: Corpus) -> dict[str, Any]:
    """What a checkpoint shall know, as JSON can hold it."""
    return {
        "step": len(run.steps),
        "config": asdict(run.config),
        "corpus": {"name": corpus.name, "files": corpus.files, "digest": corpus.digest},
        "steps": [asdict(step) for step in run.steps],
        "held_out": run.held_out,
    }


def from_json(state: Mapping[str, Any]) -> Saved:
    """The other direction, of whatever a file held. ValueError names the key that is not as `to_json` wrote it."""
    config = TrainConfig(**_plain(_object(state, "config", TrainConfig)))
    corpus = _object(state, "corpus")
    if _whole(_entry(corpus, "files", "corpus."), "corpus.files") < 2:
        raise ValueError(f"corpus.files must be at least 2, got {corpus['files']}")
    if not isinstance(_entry(corpus, "digest", "corpus."), str):
        raise ValueError(f"corpus.digest must be a string, got {short(corpus['digest'])}")
    listed = _entry(state, "steps")
    if not isinstance(listed, list):
        raise ValueError(f"steps must be a list, got {_kind(listed)}")
    steps = [_step(entry, number) for number, entry in enumerate(listed, 1)]
    taken = _whole(_entry(state, "step"), "step")
    if taken != len(steps):
        raise ValueError(f"step is {taken}, and there are {len(steps)} steps")
    if taken > config.steps:
        raise ValueError(f"step is {taken}, and config.steps, of which the run has no more, is {config.steps}")
    return Saved(config, steps, _held_out(state, taken), corpus)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a `TrainConfig` as Python's int, float, tuple or str; a ValueError names one that is none."""
    plain = {}
    for setting in fields(TrainConfig):
        name, value = setting.name, settings[setting.name]
        if setting.type is int or name == "warmup" and value is not None:
            value = _whole(value, name)
        elif setting.type is float or name == "clip" and value is not None:
            value = _real(value, name)
        elif name == "betas":
            if not isinstance(value, tuple | list) or len(value) != 2:
                raise ValueError(f"betas must be two numbers, got {short(value)}")
            value = tuple(_real(beta, name) for beta in value)
        elif name == "dtype" and not isinstance(value, str):
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {short(value)}")
        plain[name] = value
    return plain


def _step(entry: Any, number: int) -> Step:
    where = f"steps[{number - 1}]"
    values = _object({where: entry}, where, Step)
    if _whole(values["number"], f"{where}.number") != number:
        raise ValueError(f"{where}.number must be {number}, got {values['number']}")
    terms = _object(values, "terms")
    numbers = {name: _finite(values[name], f"{where}.{name}") for name in ("loss", "learning_rate", "gradient_norm")}
    if (seconds := _finite(values["seconds"], f"{where}.seconds")) <= 0:
        raise ValueError(f"{where}.seconds must be above 0, got {seconds}")
    terms = {name: _real(term, f"{where}.terms.{name}") for name, term in terms.items()}
    return Step(number, **numbers, seconds=seconds, terms=terms)


def _held_out(state: Mapping[str, Any], taken: int) -> dict[int, float]:
    found = {}
    for key, loss in _object(state, "held_out").items():
        if not (key.isascii() and key.isdigit() and len(key) < 20 and int(key) <= taken):  # JSON's keys are strings
            raise ValueError(f"held_out is by steps from 0 to {taken}, and holds {short(key)}")
        found[int(key)] = _real(loss, f"held_out.{key}")
    if not found:
        raise ValueError("held_out is empty, and a run begins with a held-out loss")
    return found


def _entry(values: Mapping[str, Any], key: str, where: str = "") -> Any:
    if key not in values:
        raise ValueError(f"{where}{key} is missing")
    return values[key]


def _object(values: Mapping[str, Any], key: str, kind: type | None = None) -> dict[str, Any]:
    """The object under a key; with `kind`, a dataclass, its keys must be the fields of that."""
    found = _entry(values, key)
    if not isinstance(found, dict):
        raise ValueError(f"{key} must be an object, got {_kind(found)}")
    if kind is not None:
        names = {each.name for each in fields(kind)}
        for name in sorted(names - found.keys()):
            raise ValueError(f"{key}.{name} is missing")
        for name in sorted(found.keys() - names):
            raise ValueError(f"{key}.{short(name)} is unknown")
    return found


def _kind(value: Any) -> str:
    """What JSON calls it."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _whole(value: Any, name: str) -> int:
    try:
        if not isinstance(value, bool):
            return index(value)
    except TypeError:
        pass
    raise ValueError(f"{name} must be a whole number, got {short(value)}")


def _real(value: Any, name: str) -> float:
    try:
        if isinstance(value, Real) and not isinstance(value, bool):
            return float(value)
    except OverflowError:  # an int beyond 1e308
        pass
    raise ValueError(f"{name} must be a number, got {short(value)}")


def _finite(value: Any, name: str) -> float:
    number = _real(value, name)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number
