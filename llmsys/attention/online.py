"""Stage 2, online softmax: normalise a row that is still arriving.

A softmax must not overflow, so it subtracts the row's maximum m before it exponentiates, and divides by ℓ:

    m = max_j x_j        ℓ = Σ_j e^(x_j − m)        y_j = e^(x_j − m) / ℓ

Written like that, the row is read three times: for m, for ℓ, for y. But a piece of the row can be *summarised* with the
maximum of what has been seen, as the pair (m, ℓ), and two summaries can be merged: the one with the smaller maximum
is scaled down to the other's,

    m = max(m₁, m₂)      ℓ = ℓ₁ e^(m₁ − m) + ℓ₂ e^(m₂ − m)                                                (merge)

This is associative and commutative, and (−∞, 0) changes nothing: a commutative monoid. So the row may be cut into tiles
and folded from left to right as they stream in (Milakov and Gimelshein, https://arxiv.org/abs/1805.02867, algorithm
3), or merged as a tree by many processors, in any order: the same (m, ℓ), up to rounding. That makes two passes of
three. The next one falls when what is wanted is not y itself but a sum weighted by it, as in attention: the weighted
sum is a second ℓ, whose terms are multiplied by v_j, and is rescaled along with it. `online_attention` below reads
K and V once and never holds a score matrix (Rabe and Staats, https://arxiv.org/abs/2112.05682).
"""

from collections.abc import Iterator
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from llmsys.attention.contract import check_arguments, with_gradients_of_zero


class Partial(NamedTuple):
    """The summary of a piece of each row: its maximum m, and l = Σ e^(x − m) over the piece. One of each a row."""

    m: Tensor
    l: Tensor


def identity(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> Partial:
    """The summary of nothing, (−∞, 0): merging it changes nothing."""
    return Partial(
        torch.full(shape, float("-inf"), dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device)
    )


def summarize(x: Float[Tensor, "*rows n"]) -> Partial:
    """Summarise one tile, x (..., n), over its last dimension: a maximum and a sum a row, in fp32 or wider."""
    x = x.to(_wide(x))
    if x.shape[-1] == 0:
        return identity(*x.shape[:-1], dtype=x.dtype, device=x.device)
    m = x.amax(dim=-1)
    return Partial(m, torch.exp(x - _finite(m)[..., None]).sum(dim=-1))


def merge(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Partial:
    """The summary of two pieces together. Associative, commutative, with `identity` (equation *merge* above)."""
    (m1, l1), (m2, l2) = a, b
    m = torch.maximum(m1, m2)
    return Partial(m, l1 * rescale(m1, m) + l2 * rescale(m2, m))


def rescale(m_old: Tensor, m_new: Tensor) -> Tensor:
    """e^(m_old − m_new): brings a sum taken under m_old to m_new ≥ m_old. Where both are −∞, 0 and not NaN."""
    return torch.exp(m_old - _finite(m_new))


def safe_softmax(x: Float[Tensor, "*rows n"], tile: int) -> Float[Tensor, "*rows n"]:
    """Softmax over the last dimension in **three** passes over x, never holding more than `tile` columns of it.

    A row of nothing but −∞ gives zeros.
    """
    m, l = identity(*x.shape[:-1], dtype=_wide(x), device=x.device)
    for part in tiles(x, tile):  # pass 1
        m = torch.maximum(m, part.amax(dim=-1))
    for part in tiles(x, tile):  # pass 2
        l = l + torch.exp(part - _finite(m)[..., None]).sum(dim=-1)
    return _normalise(x, Partial(m, l), tile)  # pass 3


def online_softmax(x: Float[Tensor, "*rows n"], tile: int) -> Float[Tensor, "*rows n"]:
    """Softmax over the last dimension in **two** passes over x: fold `merge` over its tiles, then write.

    A row of nothing but −∞ gives zeros.
    """
    nothing = identity(*x.shape[:-1], dtype=_wide(x), device=x.device)
    return _normalise(x, reduce(merge, map(summarize, tiles(x, tile)), nothing), tile)


def online_attention(
    q: Float[Tensor, "B Hq Tq Dk"],
    k: Float[Tensor, "B Hkv Tk Dk"],
    v: Float[Tensor, "B Hkv Tk Dv"],
    *,
    causal: bool = False,
    scale: float | None = None,
    return_lse: bool = False,
) -> Float[Tensor, "B Hq Tq Dv"] | tuple[Float[Tensor, "B Hq Tq Dv"], Float[Tensor, "B Hq Tq"]]:
    """Attention in one pass over K and V, a key at a time. The contract is `llmsys.attention.contract`'s.

    For each query the state is (m, l, o): l and o = Σ e^(s_j − m) v_j are both sums under m, and are rescaled together
    when m grows. The division by l is left to the end. Extra memory is O(Tq), whatever Tk; the price is a loop of Tk
    steps, which tiles (stage 3) make short and matrix products make fast.
    """
    scale = check_arguments(q, k, v, scale=scale)
    B, Hq, Tq, Dk = q.shape
    Hkv, Tk, Dv = v.shape[1:]
    G = Hq // Hkv
    # (B, Hkv, G, Tq, Dk): a key head's whole group of query heads meets each of its keys
    rows = q.reshape(B, Hkv, G, Tq, Dk).to(_wide(q)) * scale
    m, l = identity(B, Hkv, G, Tq, dtype=rows.dtype, device=q.device)
    o = rows.new_zeros(B, Hkv, G, Tq, Dv)
    last_key = torch.arange(Tq, device=q.device) + (Tk - Tq)  # (Tq,): the last key that each query sees
    for j in range(Tk):
        k_j = k[:, :, None, j, :, None].to(rows.dtype)  # (B, Hkv, 1, Dk, 1)
        v_j = v[:, :, None, None, j].to(rows.dtype)  #    (B, Hkv, 1, 1, Dv)
        s = (rows @ k_j)[..., 0]  #                       (B, Hkv, G, Tq)
        if causal:
            s = s.masked_fill(last_key < j, float("-inf"))
        m_new = torch.maximum(m, s)
        shrink, p = rescale(m, m_new), rescale(s, m_new)
        l = l * shrink + p
        o = o * shrink[..., None] + p[..., None] * v_j
        m = m_new
    o = (o / torch.where(l > 0, l, 1)[..., None]).view(B, Hq, Tq, Dv).to(q.dtype)
    o = with_gradients_of_zero(o, q, k, v)
    if not return_lse:
        return o
    return o, (m + torch.log(l)).view(B, Hq, Tq).float()  # no key: −∞ + log 0 = −∞


def tiles(x: Tensor, tile: int) -> Iterator[Tensor]:
    """Load x (..., n) tile by tile, in fp32 or wider: `tile` columns at a time, and in the end what is left.

    Each tile is a copy. It stands for the tile on the chip: making it reads x once, and what is then done to it is
    free.
    """
    if tile < 1:
        raise ValueError(f"tile must be at least 1 column, got {tile}")
    return (x[..., start : start + tile].to(_wide(x), copy=True) for start in range(0, x.shape[-1], tile))


def _normalise(x: Tensor, whole: Partial, tile: int) -> Tensor:
    """The last pass over x: the softmax, from the summary of whole rows."""
    y = torch.empty_like(x)
    shift, l = _finite(whole.m)[..., None], torch.where(whole.l > 0, whole.l, 1)[..., None]
    for i, part in enumerate(tiles(x, tile)):
        y[..., i * tile : (i + 1) * tile] = torch.exp(part - shift) / l
    return y


def _finite(m: Tensor) -> Tensor:
    """m, with 0 in the place of −∞."""
    # −∞ − (−∞) is NaN. Where nothing has been seen yet, any finite number does, for e^(−∞ − 0) = 0 is what is meant.
    return torch.where(m == float("-inf"), 0, m)


def _wide(x: Tensor) -> torch.dtype:
    """The dtype in which sums are kept: x's own, or fp32 where x has fewer bits."""
    return torch.promote_types(x.dtype, torch.float32)
