"""Stage 3, tiled attention: the score matrix never exists. FlashAttention's forward pass, in PyTorch.

Lesson 02 keeps two numbers of a row: m, its maximum so far, and a running sum, ℓ = Σ e^(s_j − m). The output is one
more sum under the same maximum, o = Σ e^(s_j − m) v_j, so it can be rescaled along with ℓ. For a tile of keys with the
scores s = q kᵀ · scale:

    m' = max(m, max_j s_j)      p_j = e^(s_j − m')      a = e^(m − m')
    ℓ' = a ℓ + Σ_j p_j
    o' = a o + p v                                                                                     (deferred)

and o / ℓ at the end. The other form keeps o normalised at every step, so that it is the right answer for the keys seen
so far, and pays two more multiplications and a division for each element of the tile's output and scores:

    o' = (a ℓ / ℓ') o + (p / ℓ') v                                                                     (normalised)

What moves: with queries in the outer loop, a tile of q stays on the chip while K and V stream by, so q and o cross
once and K and V once *a query tile*. With keys outside (FlashAttention's first version), K and V cross once, and q, o,
m and ℓ once a key tile, o both ways. With a causal mask, tiles that no query sees are neither loaded nor computed.

Extra memory is a few tiles, whatever T is. (FlashAttention: https://arxiv.org/abs/2205.14135, algorithm 1; queries
outside and the deferred division: FlashAttention-2, https://arxiv.org/abs/2307.08691, section 3.1.)
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from llmsys.attention.contract import check_arguments, with_gradients_of_zero
from llmsys.hardware.memory import DIRECT, Direct


class State(NamedTuple):
    """What is known of each query after some of its keys.

    m    (…, Tq)       the maximum of its scores
    l    (…, Tq)       Σ e^(s_j − m)
    o    (…, Tq, Dv)   Σ e^(s_j − m) v_j; in the normalised form, that over l
    """

    m: Tensor
    l: Tensor
    o: Tensor


def attend_one_query(
    q: Float[Tensor, "Dk"], k: Float[Tensor, "T Dk"], v: Float[Tensor, "T Dv"], *, tile: int = 16,
    scale: float | None = None,
) -> Float[Tensor, "Dv"]:  # fmt: skip
    """Attention of one query over k and v as they stream in, `tile` keys at a time, by the *normalised* recurrence.

    After each tile, o is the attention over the keys seen so far. Raises ValueError as every stage does.
    """
    scale = check_arguments(*(x[None, None] for x in (q[None], k, v)), scale=scale)
    _check_tile("tile", tile)
    state = _nothing(q[None], v.shape[-1])
    for start in range(0, k.shape[0], tile):
        scores = (q[None].to(state.o.dtype) * scale) @ k[start : start + tile].to(state.o.dtype).mT  # (1, tile)
        state = absorb(state, scores, v[start : start + tile].to(state.o.dtype), deferred=False)
    return state.o[0].to(q.dtype)


def tiled_attention(
    q: Float[Tensor, "B Hq Tq Dk"],
    k: Float[Tensor, "B Hkv Tk Dk"],
    v: Float[Tensor, "B Hkv Tk Dv"],
    *,
    causal: bool = False,
    scale: float | None = None,
    return_lse: bool = False,
    block_q: int = 64,
    block_k: int = 64,
    order: str = "query",
    deferred: bool = True,
    hbm: Direct = DIRECT,
) -> Float[Tensor, "B Hq Tq Dv"] | tuple[Float[Tensor, "B Hq Tq Dv"], Float[Tensor, "B Hq Tq"]]:
    """Attention a tile at a time. The contract is `llmsys.attention.contract`'s; Tq × Tk scores never exist at once.

    Parameters
    ----------
    block_q, block_k
        Rows of a query tile (of each query head), and of a tile of keys and values.
    order
        "query": query tiles in the outer loop (FlashAttention-2); "key": tiles of keys (FlashAttention).
    deferred
        Divide by l once, at the end; otherwise keep o normalised at every step.
    hbm
        Where q, k and v are: a `llmsys.hardware.memory.HBM` counts what crosses, `DIRECT` does not.
    """
    scale = check_arguments(q, k, v, scale=scale)
    _check_tile("block_q", block_q)
    _check_tile("block_k", block_k)
    if order not in ("query", "key"):
        raise ValueError(f'order must be "query" or "key" (which tiles the outer loop is over), got {order!r}')
    B, Hq, Tq, Dk = q.shape
    Hkv, Tk, Dv = v.shape[1:]
    # All B · Hkv key heads go side by side. A group's query heads share each tile of keys that is loaded for them.
    grouped = q.unflatten(1, (Hkv, Hq // Hkv))  # (B, Hkv, G, Tq, Dk)
    o = hbm.empty((B, Hq, Tq, Dv), dtype=q.dtype, device=q.device, name="o")
    lse = hbm.empty((B, Hq, Tq), dtype=torch.float32, device=q.device, name="lse")
    homes = (x.unflatten(1, (Hkv, Hq // Hkv)) for x in (o, lse))
    tiles = Tiles(grouped, k, v, *homes, causal, scale, deferred, hbm)
    if Hq:
        (_queries_outside if order == "query" else _keys_outside)(tiles, block_q, block_k)
    o = with_gradients_of_zero(o, q, k, v)
    return (o, lse) if return_lse else o


def absorb(state: State, scores: Tensor, v: Tensor, *, deferred: bool) -> State:
    """The state after one more tile: its scores (…, Tq, tile), −∞ where masked, and its values (…, tile, Dv)."""
    m = torch.maximum(state.m, scores.amax(dim=-1))
    # Where a query has seen no key yet, m is −∞; −∞ − (−∞) would be NaN, and any finite number makes e^(−∞) = 0.
    finite = torch.where(m == float("-inf"), 0, m)
    p = torch.exp(scores - finite[..., None])
    shrink = torch.exp(state.m - finite)
    l = shrink * state.l + p.sum(dim=-1)
    if deferred:
        return State(m, l, shrink[..., None] * state.o + p @ v)
    inverse = 1 / torch.where(l > 0, l, 1)
    return State(m, l, (shrink * state.l * inverse)[..., None] * state.o + (p * inverse[..., None]) @ v)


class Tiles(NamedTuple):
    """The tensors in HBM, and the loads and stores of their tiles.

    Query heads are grouped by their key head: q (B, Hkv, G, Tq, Dk), o (B, Hkv, G, Tq, Dv), lse (B, Hkv, G, Tq).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    lse: Tensor
    causal: bool
    scale: float
    deferred: bool
    hbm: Direct

    def queries(self, start: int, stop: int) -> Tensor:
        """Load a tile of queries, scaled (B, Hkv, G · rows, Dk): a group's heads, one below the other."""
        tile = self.hbm.load(self.q[..., start:stop, :])
        return (tile.to(_wide(tile)) * self.scale).flatten(2, 3)

    def keys_values(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Load a tile of keys and one of values."""
        k, v = self.hbm.load(self.k[:, :, start:stop]), self.hbm.load(self.v[:, :, start:stop])
        return k.to(_wide(k)), v.to(_wide(v))

    def scores(self, q: Tensor, k: Tensor, q_start: int, k_start: int) -> Tensor:
        """q kᵀ (B, Hkv, G · rows, keys), −∞ where causality hides a key. A tile that is all visible needs no mask."""
        s = q @ k.mT
        rows, keys = q.shape[2] // self.q.shape[2], k.shape[2]
        offset = self.k.shape[2] - self.q.shape[3]  # bottom-right: query i sees the keys up to i + Tk − Tq
        if self.causal and k_start + keys - 1 > q_start + offset:
            query = torch.arange(q_start, q_start + rows, device=q.device)[:, None] + offset
            hidden = torch.arange(k_start, k_start + keys, device=q.device) > query  # (rows, keys)
            s.unflatten(2, (-1, rows)).masked_fill_(hidden, float("-inf"))
        return s

    def first_hidden_key(self, q_stop: int) -> int:
        """The first key that no query before q_stop sees."""
        Tk, Tq = self.k.shape[2], self.q.shape[3]
        return min(max(q_stop + Tk - Tq, 0), Tk) if self.causal else Tk

    def write(self, state: State, start: int, stop: int) -> None:
        """Store the finished rows of o and lse."""
        o, l = state.o, torch.where(state.l > 0, state.l, 1)
        if self.deferred:
            o = o / l[..., None]
        lse = state.m + torch.log(l)  # a query without a key: −∞
        rows = stop - start
        self.hbm.store(self.o[..., start:stop, :], o.unflatten(2, (-1, rows)).to(self.o.dtype))
        self.hbm.store(self.lse[..., start:stop], lse.unflatten(2, (-1, rows)).float())


def _queries_outside(tiles: Tiles, block_q: int, block_k: int) -> None:
    """The order of FlashAttention-2: a query tile is finished before the next begins; they may run side by side."""
    Tq, Dv = tiles.q.shape[3], tiles.v.shape[3]
    for q_start in range(0, Tq, block_q):
        q_stop = min(q_start + block_q, Tq)
        q = tiles.queries(q_start, q_stop)
        state = _nothing(q, Dv)
        for k_start in range(0, stop := tiles.first_hidden_key(q_stop), block_k):
            k, v = tiles.keys_values(k_start, min(k_start + block_k, stop))
            state = absorb(state, tiles.scores(q, k, q_start, k_start), v, deferred=tiles.deferred)
        tiles.write(state, q_start, q_stop)


def _keys_outside(tiles: Tiles, block_q: int, block_k: int) -> None:
    """The order of FlashAttention: each tile of keys visits every query that sees it; between visits a query's state
    waits in HBM."""
    hbm, (B, Hkv, G, Tq, _), (Tk, Dv) = tiles.hbm, tiles.q.shape, tiles.v.shape[2:]
    wide = {"dtype": _wide(tiles.q), "device": tiles.q.device}
    m_home = hbm.empty((B, Hkv, G, Tq), name="m", **wide)
    l_home = hbm.empty((B, Hkv, G, Tq), name="l", **wide)
    # o waits as it is in the sum: in fp32, where q's dtype would round it at every visit
    o_home = tiles.o if tiles.o.dtype == wide["dtype"] else hbm.empty((B, Hkv, G, Tq, Dv), name="running o", **wide)
    for k_start in range(0, Tk, block_k):
        k, v = tiles.keys_values(k_start, min(k_start + block_k, Tk))
        for q_start in range(0, Tq, block_q):
            q_stop = min(q_start + block_q, Tq)
            if k_start >= tiles.first_hidden_key(q_stop):
                continue  # no query of this tile sees these keys, nor any later ones
            q = tiles.queries(q_start, q_stop)
            rows = (..., slice(q_start, q_stop))
            if k_start == 0:
                state = _nothing(q, Dv)
            else:
                o = hbm.load(o_home[(*rows, slice(None))]).flatten(2, 3)
                state = State(hbm.load(m_home[rows]).flatten(2, 3), hbm.load(l_home[rows]).flatten(2, 3), o)
            state = absorb(state, tiles.scores(q, k, q_start, k_start), v, deferred=tiles.deferred)
            if k_start + block_k >= tiles.first_hidden_key(q_stop):
                tiles.write(state, q_start, q_stop)
                continue
            hbm.store(m_home[rows], state.m.unflatten(2, (G, -1)))
            hbm.store(l_home[rows], state.l.unflatten(2, (G, -1)))
            hbm.store(o_home[(*rows, slice(None))], state.o.unflatten(2, (G, -1)))
    for q_start in range(0, Tq, block_q):  # queries that come before every key were never visited
        q_stop = min(q_start + block_q, Tq)
        if tiles.first_hidden_key(q_stop) == 0:
            tiles.write(_nothing(tiles.queries(q_start, q_stop), Dv), q_start, q_stop)


def _nothing(q: Tensor, Dv: int) -> State:
    """The state of queries q (…, Tq, Dk) that have seen no key."""
    o = q.new_zeros(*q.shape[:-1], Dv, dtype=_wide(q))
    return State(o.new_full(o.shape[:-1], float("-inf")), o.new_zeros(o.shape[:-1]), o)


def _wide(x: Tensor) -> torch.dtype:
    """The dtype in which sums are kept: x's own, or fp32 where x has fewer bits."""
    return torch.promote_types(x.dtype, torch.float32)


def _check_tile(name: str, rows: int) -> None:
    if rows < 1:
        raise ValueError(f"{name} must be at least 1 row, got {rows}")
