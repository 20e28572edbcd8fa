"""Latent attention in two forms, which compute the same (https://arxiv.org/abs/2405.04434, section 2.1).

A cache of keys and values holds 2 · Hkv · D numbers a token. Multi-head latent attention keeps fewer without sharing
heads: it keeps what keys and values are *made from*. Of token t, with the sizes of DeepSeek-V3 on the right:

    c_t = norm(W_c x_t)                   the latent                                       L = 512
    r_t = turn(W_r x_t)                   a key for the position alone, for all heads      R = 64
    k_t,h = [U_h c_t ; r_t]               key of head h                                    Dn + R = 128 + 64
    v_t,h = V_h c_t                       its value                                        Dv = 128

Kept are c_t and r_t, 576 numbers a layer for 128 heads; keys and values of these would be 40,960.

**Naive form**: expand, then attend as ever. It is the right one where many queries see few keys, as in training.

**Absorbed form**: a score is a product with U_h c_t, and U_h may be moved to its other side, once a query:

    s = q_nope · (U_h c_t) + q_rope · r_t = (U_hᵀ q_nope) · c_t + q_rope · r_t
    o = Σ_t p_t V_h c_t = V_h (Σ_t p_t c_t)

So all heads attend to one "key" [c_t ; r_t] of L + R numbers, whose first L are the "value" as well: multi-query
attention with very large heads. Nothing is expanded, and a decode step reads 576 numbers a token for all heads. A
product of a query and a key costs more, 576 + 512 multiplications where it was 192 + 128.

**Why r_t.** Rotary positions would stand between q_nope and U_h, a matrix that depends on both tokens: it cannot be
absorbed into either side. So some columns of the key have the position and are not expanded, and the latent has none.

**The scale is 1/√(Dn + R) in both forms.** The absorbed product is the same number as the naive one, though its
vectors are longer: 1/√576 would be another model.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from llmsys.attention.contract import Attention
from llmsys.attention.naive import naive_attention


def expand_latent(
    latent: Float[Tensor, "B 1 T LR"], key_up: Float[Tensor, "H Dn L"], value_up: Float[Tensor, "H Dv L"]
) -> tuple[Float[Tensor, "B H T DnR"], Float[Tensor, "B H T Dv"]]:
    """Keys (B, H, T, Dn + R) and values (B, H, T, Dv) of all heads, of latents [c ; r] (B, 1, T, L + R).

    `key_up` are the U_h and `value_up` the V_h. r comes behind each head's key as it is, turned or not.
    """
    L, H = key_up.shape[2], key_up.shape[0]
    c, r = latent[:, 0, :, :L], latent[..., L:]  # (B, T, L), (B, 1, T, R)
    k = torch.einsum("btl,hdl->bhtd", c, key_up)  # (B, H, T, Dn)
    v = torch.einsum("btl,hdl->bhtd", c, value_up)  # (B, H, T, Dv)
    return torch.cat((k, r.expand(-1, H, -1, -1)), dim=-1), v


def absorb_queries(q: Float[Tensor, "B H T DnR"], key_up: Float[Tensor, "H Dn L"]) -> Float[Tensor, "B H T LR"]:
    """Queries [U_hᵀ q_nope ; q_rope] (B, H, T, L + R) for latents, of those for keys, (B, H, T, Dn + R)."""
    nope, rope = q.split((key_up.shape[1], q.shape[3] - key_up.shape[1]), dim=-1)
    return torch.cat((torch.einsum("bhtd,hdl->bhtl", nope, key_up), rope), dim=-1)


def expand_outputs(o: Float[Tensor, "B H T L"], value_up: Float[Tensor, "H Dv L"]) -> Float[Tensor, "B H T Dv"]:
    """V_h (Σ p c): each head's output, of its weighted sum of latents."""
    return torch.einsum("bhtl,hdl->bhtd", o, value_up)


def naive_latent_attention(
    q: Float[Tensor, "B H Tq DnR"],
    latent: Float[Tensor, "B 1 Tk LR"],
    key_up: Float[Tensor, "H Dn L"],
    value_up: Float[Tensor, "H Dv L"],
    *,
    causal: bool = False,
    scale: float | None = None,
    stage: Attention = naive_attention,
) -> Float[Tensor, "B H Tq Dv"]:
    """Latent attention that expands K and V, by any stage.

    Parameters
    ----------
    q
        Queries [nope ; rope], the latter turned.
    latent
        What is kept of each token: [c ; r], r turned.
    key_up, value_up
        The matrices that make each head's key, but for r, and value of c.
    causal, scale
        As in every stage (`llmsys.attention.contract`); scale None is 1/√(Dn + R).
    stage
        Who attends. (Heads are of Dn + R and Dv here, and L + R and L in the absorbed form, in which not every stage
        has room for DeepSeek's 576.)

    Raises
    ------
    ValueError
        Sizes do not go together; names the argument.
    """
    scale = check_latent(q, latent, key_up, value_up, scale)
    k, v = expand_latent(latent, key_up, value_up)
    return stage(q, k, v, causal=causal, scale=scale)


def absorbed_latent_attention(
    q: Float[Tensor, "B H Tq DnR"],
    latent: Float[Tensor, "B 1 Tk LR"],
    key_up: Float[Tensor, "H Dn L"],
    value_up: Float[Tensor, "H Dv L"],
    *,
    causal: bool = False,
    scale: float | None = None,
    stage: Attention = naive_attention,
) -> Float[Tensor, "B H Tq Dv"]:
    """The same, by attending to the latents themselves. Arguments and errors as `naive_latent_attention`'s."""
    scale = check_latent(q, latent, key_up, value_up, scale)
    o = stage(absorb_queries(q, key_up), latent, latent[..., : key_up.shape[2]], causal=causal, scale=scale)
    return expand_outputs(o, value_up)


def check_latent(q: Tensor, latent: Tensor, key_up: Tensor, value_up: Tensor, scale: float | None) -> float:
    """Check the arguments of latent attention, and return the scale: 1/√(Dn + R) where it is None. Raises ValueError,
    which names the first argument that does not go with the others."""
    for name, x, shape in (("q", q, "(B, H, Tq, Dn + R)"), ("latent", latent, "(B, 1, Tk, L + R)")):
        if x.dim() != 4:
            raise ValueError(f"{name} must be {shape}, got shape {tuple(x.shape)}")
    for name, x, shape in (("key_up", key_up, "(H, Dn, L)"), ("value_up", value_up, "(H, Dv, L)")):
        if x.dim() != 3:
            raise ValueError(f"{name} must be {shape}, got shape {tuple(x.shape)}")
    B, H, _, D = q.shape
    if latent.shape[0] != B or latent.shape[1] != 1:
        raise ValueError(
            f"latent must be (B, 1, Tk, L + R) with q's B = {B}: one head, which all query heads share; got "
            f"{tuple(latent.shape)}"
        )
    if key_up.shape[0] != H or key_up.shape[1] > D:
        raise ValueError(
            f"key_up must be (H, Dn, L) with q's H = {H} and Dn at most its {D} elements, got {tuple(key_up.shape)}"
        )
    L, R = key_up.shape[2], D - key_up.shape[1]
    if value_up.shape[0] != H or value_up.shape[2] != L:
        raise ValueError(f"value_up must be (H, Dv, L) with key_up's H = {H} and L = {L}, got {tuple(value_up.shape)}")
    if latent.shape[3] != L + R:
        raise ValueError(
            f"latent must have L + R = {L} + {R} elements a token, the latent and the key for the position, got "
            f"{latent.shape[3]}"
        )
    if scale is None:
        return 1 / math.sqrt(D)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be a positive number or None (for 1/√(Dn + R)), got {scale}")
    return float(scale)
