"""Exercise (d) on plain data: `split_kv` is called with an `attend` that notes what it is handed.

That one computes by the definition, in float32, in plain PyTorch, and refuses what a kernel would go wrong on without a
word: pages that are not there, lengths below 0, a cache that is a copy.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from llmsys.lessons.lesson_08_paged_kv_cache.decoding import in_a_larger_cache, in_longer_rows

ON_THE_HOST = (
    "a number that is on the GPU was asked for on the host: a length, say, by .item(), .tolist(), int(…), an if, or a "
    "mask as an index. Compute with tensors, whose shapes depend on no length"
)
ELSEWHERE = "a tensor was made on another device than q's: torch.arange(…, device=q.device), for one"


class Noting:
    """attend(q, key_pages, value_pages, seq_lens, block_table) -> (o, lse) in float32, which keeps what it was handed:
    of each call `steps` has [sequences, the longest, keys in all], and `shapes` those of q and seq_lens, and the rows
    of block_table."""

    def __init__(self, q: Tensor, key_pages: Tensor, value_pages: Tensor):
        self.q, self.pages = q, (key_pages, value_pages)
        self.steps: list[list[int]] = []
        self.shapes: list[list[int] | int] = []

    def __call__(self, q, key_pages, value_pages, seq_lens, block_table):
        self._check(q, key_pages, value_pages, seq_lens, block_table)
        self.shapes += [list(q.shape), list(seq_lens.shape), block_table.shape[0]]
        o, lse = (q.new_empty(shape, dtype=torch.float32) for shape in (q.shape, q.shape[:2]))
        if q.device.type == "meta":
            return o, lse
        self._check_values(seq_lens, block_table)
        lengths = seq_lens.tolist()
        self.steps.append([len(lengths), max(lengths), sum(lengths)])
        for i, (length, row) in enumerate(zip(lengths, block_table, strict=True)):
            k, v = (_gathered(pages, row, length) for pages in self.pages)
            o[i], lse[i] = _attention(q[i], k, v)
        return o, lse

    def _check(self, q, key_pages, value_pages, seq_lens, block_table) -> None:
        Hq, D = self.q.shape[1:]
        if not isinstance(q, Tensor) or q.dim() != 3 or q.shape[1:] != (Hq, D) or q.dtype != self.q.dtype:
            raise ValueError(f"attend's q must be (S', {Hq}, {D}) in {self.q.dtype}, got {_seen(q)}")
        for name, given, own in zip(("key_pages", "value_pages"), (key_pages, value_pages), self.pages, strict=True):
            same = isinstance(given, Tensor) and given.shape == own.shape and given.stride() == own.stride()
            if not same or (own.device.type != "meta" and given.data_ptr() != own.data_ptr()):
                raise ValueError(f"attend's {name} must be the very memory that was handed over, got {_seen(given)}")
        for name, x, dimensions in (("seq_lens", seq_lens, 1), ("block_table", block_table, 2)):
            shape = f"({q.shape[0]}{', …' if dimensions == 2 else ','})"
            if not isinstance(x, Tensor) or x.dim() != dimensions or x.shape[0] != q.shape[0]:
                raise ValueError(f"attend's {name} must be {shape}, for it is given {len(q)} rows of q; got {_seen(x)}")
            if x.dtype not in (torch.int32, torch.int64):
                raise ValueError(f"attend's {name} must be whole numbers, int32 or int64, got {x.dtype}")

    def _check_values(self, seq_lens, block_table) -> None:
        blocks, page = self.pages[0].shape[:2]
        for i, length in enumerate(seq_lens.tolist()):
            if not 0 <= length <= (most := page * block_table.shape[1]):
                raise ValueError(f"attend's seq_lens[{i}] must be from 0 to {most}, as it has pages, got {length}")
            for page_id in block_table[i, : -(-length // page)].tolist():
                if not 0 <= page_id < blocks:
                    raise ValueError(f"attend's block_table[{i}] names page {page_id} for {length} keys; there is none")


def _gathered(pages: Tensor, row: Tensor, length: int) -> Tensor:
    """The first `length` keys or values of these pages, (length, Hkv, D)."""
    page = pages.shape[1]
    return pages.index_select(0, row[: -(-length // page)].long()).flatten(0, 1)[:length].double()


def _attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """o (Hq, D) and lse (Hq,) of one token's q (Hq, D), from the definition."""
    G = q.shape[0] // k.shape[1]
    k, v = (x.repeat_interleave(G, 1).transpose(0, 1) for x in (k, v))  # (Hq, length, D)
    s = (k @ q.double()[:, :, None])[:, :, 0] / math.sqrt(q.shape[1])  # (Hq, length)
    if s.shape[1] == 0:
        return torch.zeros_like(q), torch.full(q.shape[:1], -math.inf)
    m = s.amax(1, keepdim=True)
    p = torch.exp(s - m)
    l = p.sum(1, keepdim=True)
    return ((p / l)[:, None] @ v)[:, 0], (m + torch.log(l))[:, 0]


def with_attend(split: Callable) -> Callable:
    """`split_kv` without its first argument, as a function of plain tensors.

    apart     the pages are those of one layer of several, the tables' rows longer than they are wide
    report    "both": (o, lse) · "o" · "lse" · "steps": of each call of attend, [sequences, the longest, keys in all] ·
              "shapes": those that attend is handed and those of what comes out, of tensors that have no values
    """

    def run(q, key_pages, value_pages, seq_lens, block_table, pieces, *, apart=False, report="both"):
        if apart:
            key_pages, value_pages = in_a_larger_cache(key_pages, value_pages)
            block_table = in_longer_rows(block_table)
        if report == "shapes":
            return _without_values(split, q, key_pages, value_pages, seq_lens, block_table, pieces)
        attend = Noting(q, key_pages, value_pages)
        o, lse = split(attend, q, key_pages, value_pages, seq_lens, block_table, pieces)
        return {"both": (o, lse), "o": o, "lse": lse, "steps": attend.steps}[report]

    return run


def _without_values(split: Callable, *given) -> list:
    """Tensors on torch's meta device have shapes and no values: who asks for one gets an error, as a CUDA graph would
    give, and not a wait."""
    *tensors, pieces = given
    tensors = [x.to("meta") for x in tensors]
    attend = Noting(*tensors[:3])
    try:
        o, lse = split(attend, *tensors, pieces)
    except (RuntimeError, NotImplementedError) as error:  # what torch says of it is not about this exercise
        said = str(error)
        if "same device" in said:
            raise RuntimeError(ELSEWHERE).with_traceback(error.__traceback__) from None
        if "meta" in said.lower() or isinstance(error, NotImplementedError):
            raise RuntimeError(ON_THE_HOST).with_traceback(error.__traceback__) from None
        raise
    return [*attend.shapes, list(o.shape), list(lse.shape)]


def _seen(x: object) -> str:
    return f"{tuple(x.shape)} in {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
