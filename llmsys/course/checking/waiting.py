"""One line that says what a check is doing, where a person waits for it and it takes longer than a few seconds.

    with Waiting("04.causal") as waiting:
        waiting.say("many tiles")       # … 04.causal: many tiles, 7 s

It is shown in a notebook that a person has open, and in a terminal. Graders, builds and tests run cells as well, and
compare what comes out: there, nothing is shown. When the check is over, the line is gone.
"""

import contextvars
import sys
import threading
import time
from collections.abc import Callable

FIRST, NEXT = 4.0, 1.0  # seconds until the line is there, and between its changes
WIDTH = 100  # characters


class Waiting:
    """Shows the line while its block runs. `show(text)` puts a line in the place of the last one, and takes it away
    for ""; by default what this process has, or nothing."""

    def __init__(self, id: str, *, show: Callable[[str], None] | None = None, first: float = FIRST, next: float = NEXT):
        self._id, self._first, self._next, self._doing = id, first, next, ""
        self._show = show or _place()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def say(self, doing: str) -> None:
        """What is done from now on."""
        self._doing = doing

    def __enter__(self) -> "Waiting":
        if self._show:
            run = contextvars.copy_context().run  # in a notebook, the cell that the line belongs to
            self._thread = threading.Thread(target=run, args=(self._watch,), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._over.set()
        if self._thread:
            self._thread.join(timeout=2)

    def _watch(self) -> None:
        began, shown = time.monotonic(), False
        while not self._over.wait(self._next if shown else self._first):
            line = f"… {self._id}: {self._doing}"
            self._show(f"{line[:WIDTH]}, {time.monotonic() - began:.0f} s")
            shown = True
        if shown:
            self._show("")


def _place() -> Callable[[str], None] | None:
    """Where a person would see the line: the open notebook, or the terminal."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    kernel = getattr(shell, "kernel", None)
    if kernel is not None:
        # Only a frontend with a person in front of it offers to ask them for input: JupyterLab does, nbclient does not.
        return _in_a_notebook(shell) if getattr(kernel, "_allow_stdin", False) else None
    stream = sys.stderr  # now: while the learner's function runs, what it prints goes elsewhere
    return _in_a_terminal(stream) if stream is not None and stream.isatty() else None


def _in_a_notebook(shell) -> Callable[[str], None]:
    handle = {"display_id": f"llmsys-waiting-{time.monotonic_ns()}"}
    begun = []

    def show(text: str) -> None:
        shell.display_pub.publish({"text/plain": text}, transient=handle, update=bool(begun))
        begun.append(True)

    return show


def _in_a_terminal(stream) -> Callable[[str], None]:
    def show(text: str) -> None:
        stream.write(f"\r\x1b[K{text}")
        stream.flush()

    return show
