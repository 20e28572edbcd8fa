"""A bar on stderr for long runs: how many prompts are answered, how fast, and how long the rest will take."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

SHORT = 3.0
"""Seconds. A run that is over before that shows no bar, unless it is asked to."""


class Progress:
    """`with Progress(prompts) as bar: bar.tokens(3); bar.done()`; show=None: on a terminal, if it takes long."""

    def __init__(self, prompts: int, *, show: bool | None = None):
        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("answered"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("", total=prompts, said="")
        self._wanted = console.is_terminal or console.is_jupyter if show is None else show
        self._at_once = show is True
        self._shown = False
        self._tokens = 0

    def __enter__(self) -> "Progress":
        self._start = time.perf_counter()
        self._show()
        return self

    def __exit__(self, *_) -> None:
        if self._shown:
            self._bar.stop()

    def tokens(self, new: int) -> None:
        """So many tokens came."""
        self._tokens += new
        self._show()
        if self._shown:
            seconds = time.perf_counter() - self._start
            self._bar.update(self._task, said=f"{self._tokens / max(seconds, 1e-9):,.0f} tokens/s")

    def done(self) -> None:
        """One more is answered."""
        self._bar.advance(self._task)

    def _show(self) -> None:
        if self._wanted and not self._shown and (self._at_once or time.perf_counter() - self._start > SHORT):
            self._bar.start()
            self._shown = True
