"""What is learnt from: a library's sources as one long row of tokens, part of its files held out, cut into batches.

The corpus is SymPy 1.14.0, 26 MB of Python in 1,532 files: it comes with torch, so it is on every machine, and its hash
says that it is the same one everywhere. A loss measured here can be compared with one measured there.

**Split by file.** Neighbouring lines of a file have much in common, so a held-out line between two trained ones would
test memory. Here a whole file is held out or trained on, and which it is depends on its path alone: adding a file moves
no other.

**A batch is a function of its number.** The row of tokens is cut into windows; a pass over the corpus is a permutation
of them, drawn from the seed and the pass's number. So every token is seen once a pass, and there is no generator whose
state a checkpoint would have to hold: batch 1,000 is batch 1,000, after an interruption, too.

Files are joined by the tokenizer's end of text, and a window may begin in one file and end in another. Attention sees
across that border, as it does in most pre-training.
"""

import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmsys.hardware.calibration import default_path
from llmsys.models.text.tokenizer import Tokenizer

SYMPY = "sympy==1.14.0"
SYMPY_FILES = 1532
SYMPY_SHA256 = "467a419185a2b88bbd5bdbebf420ed3b41212e7b49c5ebfc72a05bd191e8862a"
"""`digest` of the sources that this release's wheel installs."""

HELD_OUT = 1 / 20
"""The share of all files that is held out, roughly: each file is drawn by itself."""


@dataclass(frozen=True)
class Corpus:
    """Tokens to train on, and tokens of other files to test on.

    `Corpus.load(tokenizer)` is the course's; `Corpus.from_texts` makes one of any texts.
    """

    name: str
    train: Int[Tensor, " N"] = field(repr=False)
    held_out: Int[Tensor, " M"] = field(repr=False)
    digest: str = field(repr=False)
    """SHA-256 of the texts, their names and the tokenizer: two corpora of one digest give the same batches."""
    files: int
    """How many texts it was made of, held out or not."""

    @classmethod
    def load(
        cls,
        tokenizer: Tokenizer,
        *,
        files: int | None = None,
        cache: Path | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> "Corpus":
        """SymPy's sources. All of them are 8.7 million of SmolLM2's tokens and take 20 s of one core, once: they are
        kept in the user's cache folder.

        Parameters
        ----------
        files
            Take so many of the files only, always the same ones, and at least one held-out one among them.
        cache
            The folder to keep the tokens in, instead of the user's.
        progress
            Called with how many files are done, of how many.

        Raises
        ------
        FileNotFoundError, ValueError
            SymPy is not installed; or it is another release, or was changed. The message says what to run.
        """
        return cls.from_texts(
            _chosen(sympy_sources(), files),
            tokenizer,
            name="SymPy 1.14.0",
            cache=default_path().parent if cache is None else cache,
            progress=progress,
        )

    @classmethod
    def from_texts(
        cls,
        texts: Mapping[str, str],
        tokenizer: Tokenizer,
        *,
        name: str = "texts",
        cache: Path | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> "Corpus":
        """A corpus of `texts`, by name; of about every twentieth name, and of one at least, the text is held out.

        Arguments as for `load`; without `cache` nothing is kept. ValueError where there are fewer than two texts.
        """
        if len(texts) < 2:
            raise ValueError(f"texts must be at least two, one of them to be held out, got {len(texts)}")
        key = hashlib.sha256(f"{digest(texts)} {tokenizer.core.to_str()} {tokenizer.bos_id}".encode()).hexdigest()
        kept = cache and cache / f"tokens-{key[:24]}.safetensors"
        if kept and (found := _read(kept)):
            return cls(name, *found, key, len(texts))
        names = sorted(texts, key=_rank)
        held_out = min(max(1, sum(_rank(name) < HELD_OUT for name in names)), len(names) - 1)
        parts = _tokenise([texts[name] for name in names], tokenizer, progress)
        corpus = cls(name, torch.cat(parts[held_out:]), torch.cat(parts[:held_out]), key, len(texts))
        if kept:
            _keep(kept, corpus)
        return corpus

    def batches(self, batch: int, context: int, *, seed: int = 0) -> "Batches":
        """Training batches of `batch` windows of `context` tokens and the one after."""
        return Batches(self.train, batch, context, seed)

    def held_out_batches(self, batch: int, context: int) -> "Batches":
        """The held-out tokens in the same form, in the files' order."""
        return Batches(self.held_out, batch, context, None)


class Batches:
    """Numbered batches: `batches[i]` is (B, T + 1), of which [:, :-1] go into the model and [:, 1:] should come out.

    `len(batches)` and a for loop are one pass. Numbers go on after it, without an end, into passes of another order; so
    none is counted from the end, and a slice is refused.

    Parameters
    ----------
    tokens
        (N,). Windows of T + 1, each beginning with the token with which the one before ends; a rest at the end that
        fills no window is left out.
    batch, context
        B and T.
    seed
        Of the order, which is another in each pass; None keeps the windows as they are.

    Raises ValueError where the tokens fill no batch.
    """

    def __init__(self, tokens: Int[Tensor, " N"], batch: int, context: int, seed: int | None):
        for name, value in (("batch", batch), ("context", context)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.tokens, self.batch, self.context, self.seed = tokens, batch, context, seed
        self.windows = (len(tokens) - 1) // context
        if self.windows < batch:
            raise ValueError(
                f"{len(tokens):,} tokens are not enough for a batch of {batch} × {context}: take a smaller batch or "
                "context, or more text"
            )
        self._order: tuple[int, Tensor] | None = None  # of the pass last asked for

    def __len__(self) -> int:
        """Whole batches in one pass. Their numbers go on after it."""
        return self.windows // self.batch

    def __iter__(self) -> Iterator[Int[Tensor, "B T1"]]:
        """The batches of the first pass."""
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: Any) -> Int[Tensor, "B T1"]:
        """Raises IndexError for a number below 0, and TypeError for what is no whole number, such as a slice."""
        try:
            number = index(number)
        except TypeError:
            raise TypeError(
                f"a batch has a number, got {number!r}; several are [batches[i] for i in range(first, last)]"
            ) from None
        if number < 0:
            raise IndexError(f"batches are numbered from 0, and go on after a pass, so there is no last; got {number}")
        epoch, place = divmod(number, len(self))
        chosen = self._permutation(epoch)[place * self.batch : (place + 1) * self.batch]
        offsets = chosen[:, None] * self.context + torch.arange(self.context + 1)
        return self.tokens[offsets].long()

    def _permutation(self, epoch: int) -> Tensor:
        if self.seed is None:
            return torch.arange(self.windows)
        if self._order is None or self._order[0] != epoch:
            random = torch.Generator().manual_seed(_number(f"{self.seed} {epoch}") % 2**63)
            self._order = epoch, torch.randperm(self.windows, generator=random)
        return self._order[1]


def sympy_sources() -> dict[str, str]:
    """The text of each of SymPy's Python files by its path; SymPy is not imported. Errors as for `Corpus.load`."""
    found = importlib.util.find_spec("sympy")
    if found is None:
        raise FileNotFoundError(f"the corpus is SymPy's sources, and it is not installed: pip install {SYMPY}")
    folder = Path(found.origin).parent
    # As bytes, not as text: a newline stays what it is on every system.
    texts = {path.relative_to(folder).as_posix(): path.read_bytes().decode() for path in sorted(folder.rglob("*.py"))}
    if digest(texts) != SYMPY_SHA256:
        raise ValueError(
            f"{folder}: its {len(texts):,} files are not those of {SYMPY}, so a loss on them would compare with no "
            f"other; run `pip install --force-reinstall --no-deps {SYMPY}`"
        )
    return texts


def digest(texts: Mapping[str, str]) -> str:
    """SHA-256 of the texts and their names."""
    total = hashlib.sha256()
    for name in sorted(texts):
        for part in (name, texts[name]):
            data = part.encode()
            total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def _rank(name: str) -> float:
    """A number from 0 to 1 that looks drawn at random, and is always the same for a name."""
    return _number(name) / 2**256


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def _chosen(texts: dict[str, str], files: int | None) -> dict[str, str]:
    if files is not None and files < 2:
        raise ValueError(f"files must be at least 2, one of them to be held out, or None for all; got {files}")
    if files is None or files >= len(texts):
        return texts
    held_out = [name for name in sorted(texts, key=_rank) if _rank(name) < HELD_OUT]
    trained_on = sorted(texts.keys() - set(held_out), key=_rank)
    few = max(1, round(files * HELD_OUT))
    return {name: texts[name] for name in [*held_out[:few], *trained_on[: files - few]]}


def _tokenise(texts: list[str], tokenizer: Tokenizer, progress: Callable | None, at_a_time: int = 64) -> list[Tensor]:
    """The ids of each text, with the beginning that the model wants and an end."""
    end = tokenizer.end_of_text
    before = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    after = [] if end is None else [end]
    parts = []
    for start in range(0, len(texts), at_a_time):
        some = texts[start : start + at_a_time]
        for encoded in tokenizer.core.encode_batch(some, add_special_tokens=False):  # on all cores
            parts.append(torch.tensor([*before, *encoded.ids, *after], dtype=torch.int32))
        if progress is not None:
            progress(len(parts), len(texts))
    return parts


def _read(file: Path) -> tuple[Tensor, Tensor] | None:
    try:
        kept = load_file(file)
        return kept["train"], kept["held_out"]
    except (OSError, SafetensorError, KeyError):  # no file, or not a whole one: it is only a cache
        return None


def _keep(file: Path, corpus: Corpus) -> None:
    beside = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"train": corpus.train, "held_out": corpus.held_out}, beside)
        beside.replace(file)  # at once: two processes may do this at the same time
    except (OSError, SafetensorError):  # a full or read-only disk: then they are made again next time
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
