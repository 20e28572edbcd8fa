"""A transfer that waits, between two GPUs over NCCL: rank 0 sends, rank 1 receives, in a group for nothing else.

Where a schedule's transfers had best begin (`llmsys.parallel.pipeline.programs`) hangs on two questions:

    Does a send end before its receive begins?   Rank 1 begins to receive 30 ms late. A send that fits into NCCL's
                                                 buffers has ended long before, a larger one ends when it is received
    What does it take from others that it waits? A rank computes one thing over and over: alone, beside a receive of
                                                 what nobody has sent, and beside sends that nobody has received yet,
                                                 one that fits and one that does not

All in turns, and the medians count; work beside a transfer is compared with the same rank's work alone. On a machine
without two GPUs, and with --quick, two processes on the CPU do it with gloo: figures of no interest, but the same code.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from llmsys.bench.pipeline import MODEL
from llmsys.bench.record import Record, new_record
from llmsys.parallel.ranks import device, run

LATE = 0.03
"""Seconds by which a receive begins late."""


@dataclass(frozen=True)
class Size:
    """What is sent, in bytes, and what is computed beside it: a layer's gate and up projections of so many tokens."""

    sends: tuple[int, ...]
    fits: int
    does_not_fit: int
    tokens: int
    inputs: int
    outputs: int
    dtype: torch.dtype
    times: int  # that it is computed, for one figure
    repeats: int


def _size(quick: bool) -> Size:
    if quick:
        return Size((2**10, 2**20), 2**10, 2**20, 8, 16, 32, torch.float32, 2, 2)
    sends = tuple(mib << 20 for mib in (1, 8, 16, 32, 48, 64, 72, 96, 128, 256))
    tokens, C = 4 * 2048, MODEL.hidden_size
    return Size(sends, 32 << 20, 256 << 20, tokens, C, 2 * MODEL.mlp_size, torch.bfloat16, 30, 9)


def measure(quick: bool = False) -> Record:
    """On two GPUs, if there are as many."""
    gpus = torch.cuda.device_count() >= 2 and dist.is_nccl_available()
    size = _size(quick or not gpus)
    rows, received = run(_on_a_rank, 2, size, backend="nccl" if gpus else "gloo", timeout=120.0)
    missing = {} if gpus else {"two GPUs": "this machine has none; two processes on its CPU"}
    return new_record("transfers", rows + received, missing)


def table(record: Record):
    """The record as a rich table: sends by their size, then what is computed beside transfers."""
    from rich.table import Table

    shown = Table("rank", "what", "beside", "ms", title=f"transfers that wait, {record.device}")
    for row in record.rows:
        what = f"{row['name']}, {_bytes(row['bytes'])}" if "bytes" in row else row["name"]
        shown.add_row(str(row["rank"]), what, row.get("beside", "–"), f"{row['ms']:.3f}")
    return shown


def _bytes(count: int) -> str:
    return f"{count / 2**20:g} MiB" if count >= 2**20 else f"{count / 2**10:g} KiB"


def _on_a_rank(size: Size) -> list[dict]:
    """This rank's rows: of its end of transfers, and of work alone and beside transfers that wait."""
    rank, group = dist.get_rank(), dist.new_group([0, 1])
    most = torch.zeros(max(*size.sends, size.does_not_fit), dtype=torch.uint8, device=device())
    _transfer(most[:1], group).wait()  # connects
    rows = [_ends(most[:count], group, size.repeats) for count in size.sends]
    x, weight, z = (
        torch.randn(shape, device=device(), dtype=size.dtype)
        for shape in ((size.tokens, size.inputs), (size.inputs, size.outputs), (size.tokens, size.outputs))
    )
    waiting = {  # on which rank, and what nobody sends or receives yet
        "nothing": (rank, None),
        "a receive": (1, most[: size.fits]),
        f"a send of {_bytes(size.fits)}": (0, most[: size.fits]),
        f"a send of {_bytes(size.does_not_fit)}": (0, most[: size.does_not_fit]),
    }
    for name, work in (("matrix product", lambda: x @ weight), ("SiLU", lambda: F.silu(z))):
        took: dict[str, list[float]] = {beside: [] for beside in waiting}
        for _ in range(size.repeats):
            for beside, (owner, moved) in waiting.items():
                with _under_way(owner, moved, group):
                    if rank == owner:
                        took[beside].append(_ms(work, size.times))
        rows += [{"name": name, "rank": rank, "beside": beside, "ms": median(ms)} for beside, ms in took.items() if ms]
    return rows


def _ends(x: Tensor, group, repeats: int) -> dict:
    """How long this rank's end of a transfer takes where the receive begins late."""
    took = []
    for _ in range(1 + repeats):
        _together()
        if dist.get_rank() == 1:
            time.sleep(LATE)
        took.append(_ms(lambda: _transfer(x, group).wait(), 1))
    rank = dist.get_rank()
    return {"name": "receive" if rank else "send", "rank": rank, "bytes": x.numel(), "ms": median(took[1:])}


@contextmanager
def _under_way(owner: int, x: Tensor | None, group) -> Iterator[None]:
    """`owner` has begun its end of a transfer, and the other rank begins when the block is over."""
    _together()
    begun = None
    if x is not None and dist.get_rank() == owner:
        begun = _transfer(x, group)
        time.sleep(LATE / 10)  # until it runs
    yield
    _together()
    if x is not None:
        (begun or _transfer(x, group)).wait()


def _transfer(x: Tensor, group):
    return (dist.irecv if dist.get_rank() else dist.isend)(x, 1 - dist.get_rank(), group=group)


def _together() -> None:
    """Both ranks are here, and their GPUs have nothing to do but what waits for the other rank."""
    if device().type == "cuda":
        torch.cuda.current_stream().synchronize()
    dist.all_reduce(torch.zeros(1))  # through CPU memory


def _ms(work: Callable[[], object], times: int) -> float:
    """Milliseconds that one of so many takes."""
    if device().type == "cpu":
        start = time.perf_counter()
        for _ in range(times):
            work()
        return 1000 * (time.perf_counter() - start) / times
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / times
