"""What a function may ask while it runs as a rank: its device, and which of the others have died.

Who it is and how many there are it asks torch: `dist.get_rank()`, `dist.get_world_size()`.
"""

import os
import sys
import threading
from collections.abc import Callable

_dead: set[int] = set()
_callbacks: list[Callable[[int], None]] = []
_lock = threading.Lock()


def device():
    """This rank's torch.device: a GPU of its own, "cuda:2", where the ranks speak through NCCL; else the CPU."""
    import torch  # here: `import llmsys.parallel.ranks` stays quick
    import torch.distributed as dist

    if dist.is_initialized() and "nccl" in dist.get_backend_config():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device("cpu")


def dead() -> frozenset[int]:
    """The ranks that have died in this run, or whose function has raised (`run(…, on_death="report")`)."""
    with _lock:
        return frozenset(_dead)


def when_dead(callback: Callable[[int], None]) -> None:
    """Calls `callback(rank)` as soon as a rank has died, in a thread of its own; at once for those that are dead.

    The callback may abort what waits for that rank: `pair.abort()`. What it raises is printed.
    """
    with _lock:
        _callbacks.append(callback)
        known = sorted(_dead)
    for rank in known:
        _call(callback, rank)


def forget() -> None:
    """A new run begins, and nobody is dead."""
    with _lock:
        _dead.clear()
        _callbacks.clear()


def told(rank: int) -> None:
    """The caller's process says that a rank has died."""
    with _lock:
        _dead.add(rank)
        callbacks = list(_callbacks)
    for callback in callbacks:
        _call(callback, rank)


def _call(callback: Callable[[int], None], rank: int) -> None:
    def call() -> None:
        try:
            callback(rank)
        except Exception as error:
            print(f"{callback!r}, called because rank {rank} is dead: {error!r}", file=sys.stderr)

    threading.Thread(target=call, daemon=True).start()
