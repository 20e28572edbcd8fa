"""Right answers to the exercises, as a reader would write them. Their edits are the mistakes that the checks know."""

import math

import torch

from llmsys.attention.naive import naive_attention


def attend_expanded(q, latent, key_up, value_up, *, causal=False, scale=None):
    """15.expand."""
    H, Dn, L = key_up.shape
    c, r = latent[..., :L], latent[..., L:]
    k = c @ key_up.mT
    v = c @ value_up.mT
    k = torch.cat((k, r.expand(-1, H, -1, -1)), dim=-1)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return naive_attention(q, k, v, causal=causal, scale=scale)


def attend_absorbed(q, latent, key_up, value_up, *, causal=False, scale=None):
    """15.absorb."""
    H, Dn, L = key_up.shape
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    nope, rope = q[..., :Dn], q[..., Dn:]
    absorbed = torch.cat((nope @ key_up, rope), dim=-1)
    o = naive_attention(absorbed, latent, latent[..., :L], causal=causal, scale=scale)
    return o @ value_up.mT


def keep(x, down, weight, positions, *, base=10_000.0, eps=1e-6):
    """15.keep."""
    L, R = len(weight), len(down) - len(weight)
    c, r = (x @ down.mT).split((L, R), dim=-1)
    c = weight * c * torch.rsqrt(c.square().mean(dim=-1, keepdim=True) + eps)
    frequency = base ** (-torch.arange(0, R, 2) / R)
    angle = positions[:, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    even, odd = r[..., 0::2], r[..., 1::2]
    r = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
    return torch.cat((c, r), dim=-1)[:, None]
