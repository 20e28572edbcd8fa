# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: llmsys
#     language: python
#     name: llmsys
# ---

# %% tags=["setup"]
from llmsys.course import check

# %% [markdown]
# ## Exercise (a): expand (20 minutes)

# %% tags=["exercise"] exercise="15.expand"
import torch

from llmsys.attention import naive_attention


def attend_expanded(q, latent, key_up, value_up, *, causal=False, scale=None):
    """Latent attention that makes the keys and values of all heads (2), and attends to them.

    q         (B, H, Tq, Dn + R)  queries [q_nope ; q_rope] of the newest Tq tokens
    latent    (B, 1, Tk, L + R)   what is kept of each token: [c ; r]; Tk is at least Tq
    key_up    (H, Dn, L)          the heads' U: a key is [U c ; r], with the same r in all heads
    value_up  (H, Dv, L)          the heads' V: a value is V c
    causal    the last query sees all keys, the one before it one key less, and so on
    scale     of the scores; None: 1/√(Dn + R)

    Returns (B, H, Tq, Dv), of q's dtype. Attention itself is not asked: naive_attention(q, k, v, causal=…, scale=…) or
    any other will do. Not allowed: the library's latent attention.
    """
    ### BEGIN SOLUTION
    H, Dn, L = key_up.shape
    c, r = latent[..., :L], latent[..., L:]
    k = c @ key_up.mT  # (B, H, Tk, Dn)
    v = c @ value_up.mT  # (B, H, Tk, Dv)
    k = torch.cat((k, r.expand(-1, H, -1, -1)), dim=-1)  # (B, H, Tk, Dn + R)
    return naive_attention(q, k, v, causal=causal, scale=scale)
    ### END SOLUTION


# %% tags=["check"] exercise="15.expand"
check("15.expand", attend_expanded)

# %% [markdown]
# ## Exercise (b): absorb (25 minutes)

# %% tags=["exercise"] exercise="15.absorb"
import math

import torch

from llmsys.attention import naive_attention


def attend_absorbed(q, latent, key_up, value_up, *, causal=False, scale=None):
    """The same attention, by (3) and (4): no key and no value of a head is made.

    q         (B, H, Tq, Dn + R)  queries [q_nope ; q_rope] of the newest Tq tokens
    latent    (B, 1, Tk, L + R)   what is kept of each token: [c ; r]; Tk is at least Tq
    key_up    (H, Dn, L)          the heads' U
    value_up  (H, Dv, L)          the heads' V
    causal    the last query sees all keys, the one before it one key less, and so on
    scale     of the scores; None: the one that makes it equal to exercise (a)

    Returns (B, H, Tq, Dv), of q's dtype. naive_attention takes one key head for many query heads: k (B, 1, Tk, …).
    Not allowed: the library's latent attention; a product of all latents with a matrix of a head.
    """
    ### BEGIN SOLUTION
    H, Dn, L = key_up.shape
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    nope, rope = q[..., :Dn], q[..., Dn:]
    absorbed = torch.cat((nope @ key_up, rope), dim=-1)  # (B, H, Tq, L + R)
    o = naive_attention(absorbed, latent, latent[..., :L], causal=causal, scale=scale)  # (B, H, Tq, L)
    return o @ value_up.mT  # (B, H, Tq, Dv)
    ### END SOLUTION


# %% tags=["check"] exercise="15.absorb"
check("15.absorb", attend_absorbed)

# %% [markdown]
# ## Exercise (c): what is kept (20 minutes)

# %% tags=["exercise"] exercise="15.keep"
import torch


def keep(x, down, weight, positions, *, base=10_000.0, eps=1e-6):
    """What is kept of each token: [c ; r], c normalised (1) and without a position, r turned (5).

    x          (B, T, C)   float32, what comes into the layer
    down       (L + R, C)  W_c above W_r
    weight     (L,)        of the latent's norm: c / √(mean(c²) + eps) · weight
    positions  (T,)        int64, where these tokens stand
    base       columns 2i and 2i + 1 of r turn by position · base^(−2i / R); R is even

    Returns (B, 1, T, L + R), float32. Not allowed: the library's rotation and its norm.
    """
    ### BEGIN SOLUTION
    L, R = len(weight), len(down) - len(weight)
    c, r = (x @ down.mT).split((L, R), dim=-1)  # (B, T, L), (B, T, R)
    c = weight * c * torch.rsqrt(c.square().mean(dim=-1, keepdim=True) + eps)
    frequency = base ** (-torch.arange(0, R, 2) / R)  # (R / 2,)
    angle = positions[:, None] * frequency  # (T, R / 2)
    cos, sin = angle.cos(), angle.sin()
    even, odd = r[..., 0::2], r[..., 1::2]
    r = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
    return torch.cat((c, r), dim=-1)[:, None]
    ### END SOLUTION


# %% tags=["check"] exercise="15.keep"
check("15.keep", keep)
