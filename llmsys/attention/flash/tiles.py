"""The sizes of the flash kernel's tiles: a small table, and autotuning, whose results are kept.

A larger tile of queries reads K and V fewer times; it also needs more registers and shared memory, and an SM that
holds fewer programs has less to switch to while one of them waits. Where the best size lies depends on the head, on
the element and on the GPU. `tiles_for` looks it up. `tuned_tiles` measures, on the tensors at hand, and writes the
choice down in the user's cache folder, so that no later process measures again.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from torch import Tensor

from llmsys.hardware.calibration import default_path

LOG2_E = 1 / math.log(2)
"""Kernels compute 2^x: what is to be exponentiated is scaled by this."""


@dataclass(frozen=True)
class TileConfig:
    """The sizes of a kernel's tiles, and what Triton is asked for."""

    block_m: int  # rows of queries of a program
    block_n: int  # keys of a tile
    num_warps: int  # warps of a program
    num_stages: int  # tiles of K and V that are loaded at the same time


DECODE = TileConfig(16, 64, 4, 3)
"""For at most 16 rows of queries, as when one token is decoded: nearly all of the work is to load K and V."""

# For each size of an element in bytes: tiles, and the largest head that has them. Measured on an H100. With 128 rows in
# four warps, registers spill; in eight warps, only one program fits on an SM. In float32, a product is many small ones.
LARGE = {
    2: ((128, TileConfig(64, 64, 4, 3)), (256, TileConfig(64, 64, 8, 2))),
    4: ((64, TileConfig(64, 32, 4, 2)), (256, TileConfig(32, 32, 4, 2))),
}
# For GPUs with 99 KiB of shared memory a program, by what fits: compiled for them, not measured.
SMALL = {
    2: ((64, TileConfig(64, 64, 4, 3)), (128, TileConfig(64, 32, 4, 3)), (256, TileConfig(32, 32, 4, 2))),
    4: ((64, TileConfig(64, 32, 4, 2)), (128, TileConfig(32, 32, 4, 2)), (256, TileConfig(16, 16, 4, 2))),
}
TABLES = {"sm_80": LARGE, "sm_86": SMALL, "sm_89": SMALL, "sm_90": LARGE, "sm_100": LARGE, "sm_120": SMALL}
"""The table of each GPU, by compute capability; a GPU that is not here gets SMALL."""

CANDIDATES = [
    TileConfig(m, n, warps, stages)
    for m, n, warps in ((64, 32, 4), (64, 64, 4), (64, 128, 4), (128, 32, 4), (128, 64, 4), (128, 64, 8), (128, 128, 8))
    for stages in (2, 3)
]
"""What autotuning tries, beside the table's choice."""


def tiles_for(D: int, itemsize: int, rows: int, target: str = "sm_90") -> TileConfig:
    """The tiles for heads of D (the larger of Dk and Dv), elements of `itemsize` bytes, and so many rows of queries.

    `rows` is G · Tq, the rows that a key head meets. `target` names the GPU by its compute capability.
    """
    if rows <= 16 and itemsize == 2:
        return DECODE
    return next(tiles for largest, tiles in TABLES.get(target, SMALL)[itemsize] if D <= largest)


def block_of(D: int) -> int:
    """The width of a tile that holds heads of D: a power of two, as Triton wants, and at least the 16 of `tl.dot`."""
    return max(16, 1 << (D - 1).bit_length())


def target_of(device: torch.device) -> str:
    """The compute capability of a device, as in "sm_90", which is also the answer for a CPU."""
    if device.type != "cuda":
        return "sm_90"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def tuned_tiles(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, run: Callable[[TileConfig], object], *, cache: Path | None = None
) -> TileConfig:
    """The fastest tiles for tensors like these: from the cache, or measured by calls of `run(tiles)`, about ten each.

    Lengths count as the same up to the next power of two. What does not fit on the GPU is passed over. Without a GPU
    there is nothing to measure: the table's choice. `cache` is a JSON file, by default in the user's cache folder.
    """
    rows = q.shape[1] // k.shape[1] * q.shape[2]
    table = tiles_for(max(q.shape[3], v.shape[3]), q.element_size(), rows, target_of(q.device))
    if not q.is_cuda or not q.numel() or not k.numel():
        return table
    cache = cache or _cache_file()
    key = _key(q, k, v, causal)
    known = _read(cache)
    if key not in known:
        seconds = {}
        for tiles in dict.fromkeys([table, *CANDIDATES]):
            with contextlib.suppress(Exception):  # too large for this GPU: Triton's OutOfResources, or the compiler's
                seconds[tiles] = _seconds(lambda tiles=tiles: run(tiles))
        known = _read(cache) | {key: astuple(min(seconds, key=seconds.get))}
        _write(cache, known)
    return TileConfig(*known[key])


def _key(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> str:
    """All that the fastest tiles depend on: GPU, Triton, the kernel's text, dtype, mask and sizes."""
    import triton

    def up(n: int) -> int:
        return 1 << (n - 1).bit_length()

    B, Hq, Tq, Dk = q.shape
    Hkv, Tk, Dv = v.shape[1:]
    text = (Path(__file__).parent / "kernels.py").read_bytes()
    return json.dumps(
        [torch.cuda.get_device_name(q.device), triton.__version__, hashlib.sha256(text).hexdigest()[:16], str(q.dtype),
         bool(causal), up(B * Hkv), Hq // Hkv, up(Tq), up(Tk), Dk, Dv]
    )  # fmt: skip


def _seconds(call: Callable[[], object], repeats: int = 7) -> float:
    call(), call()  # compiles; warms
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in events)[repeats // 2]


def _cache_file() -> Path:
    return default_path().parent / "flash_tiles.json"


def _read(path: Path) -> dict[str, list[int]]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in known.items() if len(value) == 4}
    except (OSError, ValueError, AttributeError, TypeError):  # no file, or not a whole one: it is only a cache
        return {}


def _write(path: Path, known: dict) -> None:
    with contextlib.suppress(OSError):  # a home that cannot be written: measured again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_text(json.dumps(known, indent=1), encoding="utf-8")
        beside.replace(path)  # in one step: two processes may do this at the same time
