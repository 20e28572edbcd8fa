"""What attention costs: floating-point operations, and bytes between HBM and the chip.

Counted for one forward pass, with B sequences, H query heads, T tokens and heads of D. The two products q kᵀ and p v
take 2·T²·D operations a head each, a multiply-add being two. Scores and weights have T² elements a head, and they are
most of the bytes: in the naive form each of three kernels (q kᵀ, softmax, p v) reads its operands from HBM and writes
its result there. In the tiled form the scores stay on the chip, and the bytes depend on the size of the tiles.

The figures are what the algorithm itself moves: caches, which may save some of it, and wider types are left out.
"""

from typing import NamedTuple


class Cost(NamedTuple):
    """The cost of a forward pass. `saved_bytes` is what autograd keeps for the backward pass beside q, k and v."""

    flops: int
    score_elements: int
    hbm_bytes: int
    saved_bytes: int


def naive_cost(B: int, H: int, T: int, D: int, *, itemsize: int = 2) -> Cost:
    """Naive attention, no mask: S = q kᵀ is written, read, P = softmax(S) is written, read; q, k, v, o cross once.

    `itemsize` is bytes an element: 2 for bf16, 4 for fp32. Autograd keeps P.
    """
    scores, rows = B * H * T * T, B * H * T * D
    return Cost(4 * scores * D, scores, itemsize * (4 * rows + 4 * scores), itemsize * scores)


def tiled_bytes(
    Tq: int,
    Tk: int,
    Dk: int,
    Dv: int,
    *,
    block_q: int,
    block_k: int | None = None,
    causal: bool = False,
    itemsize: int = 4,
    order: str = "query",
) -> int:
    """Bytes that tiled attention (`tiled.tiled_attention`) moves for one head with one query head a key head.

    With queries outside, q and o cross once, the log-sum-exp is written in fp32, and each query tile loads the keys and
    values that it sees: all of them, or causally those up to its last query's own. With keys outside, K and V cross
    once; each tile of keys loads the queries that see it and their state (o, m, l in fp32) and stores that again,
    except that a first visit has no state to load and a last one stores o and the log-sum-exp instead. `block_k`
    matters only there; by default it is `block_q`.
    """
    block_k = block_k or block_q
    if order not in ("query", "key"):
        raise ValueError(f'order must be "query" or "key" (which tiles the outer loop is over), got {order!r}')
    total = 0
    for q_start in range(0, Tq, block_q):
        rows = min(block_q, Tq - q_start)
        seen = min(max(q_start + rows + Tk - Tq, 0), Tk) if causal else Tk
        finish = rows * (Dv * itemsize + 4)
        if order == "query":
            total += rows * Dk * itemsize + seen * (Dk + Dv) * itemsize + finish
        else:
            visits = max(-(-seen // block_k), 1)  # a tile that sees no key is written all the same
            total += visits * rows * Dk * itemsize + (visits - 1) * 2 * rows * (Dv + 2) * 4 + finish
    if order == "key":
        total += Tk * (Dk + Dv) * itemsize
    return total
