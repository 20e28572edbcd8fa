"""A bar on stderr: how far a run is, its loss, how fast it goes and how long it will take."""

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """`with Progress(steps, done) as bar: bar.update(…)`; with show=False, nothing."""

    def __init__(self, steps: int, done: int = 0, *, show: bool = True):
        self._bar = Bar(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not show,
        )
        self._task = self._bar.add_task("", total=steps, completed=done, said="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def update(self, step: int, loss: float, tokens_per_second: float, held_out: Mapping[int, float]) -> None:
        """After a step: its loss, and the last of the held-out losses (by step)."""
        said = f"loss {loss:.3f} · {tokens_per_second:,.0f} tokens/s"
        if held_out:
            said += f" · held out {held_out[max(held_out)]:.3f}"
        self._bar.update(self._task, completed=step, said=said)
