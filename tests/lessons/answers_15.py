"""Answers to the exercises of lesson 15 that have no name among its mistakes: right ones by other ways, wrong ones."""

import math

import torch
import torch.nn.functional as F

from tests.support.verdicts import fresh

# (a)


def by_einsum(q, latent, key_up, value_up, *, causal=False, scale=None):
    """Everything written out, with a mask of its own."""
    L = key_up.shape[2]
    c, r = latent[:, 0, :, :L].float(), latent[:, 0, :, L:].float()
    Dn = key_up.shape[1]
    k = torch.einsum("btl,hdl->bhtd", c, key_up.float())
    v = torch.einsum("btl,hdl->bhtd", c, value_up.float())
    s = torch.einsum("bhqd,bhtd->bhqt", q[..., :Dn].float(), k) + torch.einsum("bhqr,btr->bhqt", q[..., Dn:].float(), r)
    s = s * (q.shape[-1] ** -0.5 if scale is None else scale)
    Tq, Tk = s.shape[-2:]
    if causal:
        s = s.masked_fill(torch.ones(Tq, Tk, dtype=torch.bool).triu(Tk - Tq + 1), float("-inf"))
    return (s.softmax(-1) @ v).to(q.dtype)


def head_by_head(q, latent, key_up, value_up, *, causal=False, scale=None):
    """A loop over heads, and torch's fused attention."""
    L, (Tq, Tk) = key_up.shape[2], (q.shape[2], latent.shape[2])
    c, r = latent.split((L, latent.shape[3] - L), dim=-1)
    mask = torch.ones(Tq, Tk, dtype=torch.bool).tril(Tk - Tq) if causal else None
    out = []
    for h in range(len(key_up)):
        k = torch.cat((F.linear(c, key_up[h]), r), dim=-1)
        v = F.linear(c, value_up[h])
        out.append(F.scaled_dot_product_attention(q[:, h : h + 1], k, v, attn_mask=mask, scale=scale))
    return torch.cat(out, dim=1)


def one_product_for_keys_and_values(q, latent, key_up, value_up, *, causal=False, scale=None):
    """Both matrices of a head one below the other, as checkpoints have them."""
    H, Dn, L = key_up.shape
    up = torch.cat((key_up, value_up), dim=1).flatten(0, 1)
    k, v = (latent[:, 0, :, :L] @ up.T).unflatten(-1, (H, -1)).transpose(1, 2).split((Dn, value_up.shape[1]), dim=-1)
    r = latent[..., L:].repeat(1, H, 1, 1)
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2]) if causal else None
    return F.scaled_dot_product_attention(q, torch.cat((k, r), dim=-1), v, attn_mask=mask, scale=scale)


def causal_at_the_top_left(q, latent, key_up, value_up, *, causal=False, scale=None):
    L, H = key_up.shape[2], len(key_up)
    c, r = latent[..., :L], latent[..., L:].expand(-1, H, -1, -1)
    k, v = torch.cat((c @ key_up.mT, r), dim=-1), c @ value_up.mT
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)


def first_sequence_only(q, latent, key_up, value_up, **options):
    return by_einsum(q, latent[:1].expand_as(latent), key_up, value_up, **options)


def in_float32_out(q, latent, key_up, value_up, **options):
    return by_einsum(q.float(), latent, key_up, value_up, **options)


def r_is_expanded_by_nobody(q, latent, key_up, value_up, *, causal=False, scale=None):
    """Adds r's scores after the scale."""
    Dn, L = key_up.shape[1:]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q = torch.cat((q[..., :Dn], q[..., Dn:] / scale), dim=-1)
    return by_einsum(q, latent, key_up, value_up, causal=causal, scale=scale)


# (b)


def absorbed_by_einsum(q, latent, key_up, value_up, *, causal=False, scale=None):
    """Scores of c and of r by themselves, the sum by einsum."""
    Dn, L = key_up.shape[1:]
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    c, r = latent[:, 0, :, :L].float(), latent[:, 0, :, L:].float()
    absorbed = torch.einsum("bhqd,hdl->bhql", q[..., :Dn].float(), key_up.float())
    s = scale * (torch.einsum("bhql,btl->bhqt", absorbed, c) + torch.einsum("bhqr,btr->bhqt", q[..., Dn:].float(), r))
    Tq, Tk = s.shape[-2:]
    if causal:
        s = s + torch.full((Tq, Tk), float("-inf")).triu(Tk - Tq + 1)
    o = torch.einsum("bhqt,btl->bhql", s.softmax(-1), c)
    return torch.einsum("bhql,hdl->bhqd", o, value_up.float()).to(q.dtype)


def absorbed_and_fused(q, latent, key_up, value_up, *, causal=False, scale=None):
    """torch's attention with latents that are repeated for all heads, r summed along and thrown away."""
    (H, Dn, L), Tq, Tk = key_up.shape, q.shape[2], latent.shape[2]
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    absorbed = torch.cat((torch.matmul(q[..., :Dn], key_up), q[..., Dn:]), dim=-1)
    k = latent.expand(-1, H, -1, -1)
    mask = torch.ones(Tq, Tk, dtype=torch.bool).tril(Tk - Tq) if causal else None
    o = F.scaled_dot_product_attention(absorbed, k, k, attn_mask=mask, scale=scale)[..., :L]
    return torch.matmul(o, value_up.transpose(1, 2))


def scale_in_the_query(q, latent, key_up, value_up, *, causal=False, scale=None):
    """The query is scaled before it is absorbed."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return absorbed_by_einsum(q.float() * scale, latent, key_up, value_up, causal=causal, scale=1.0).to(q.dtype)


def expands_by_chunks(q, latent, key_up, value_up, *, causal=False, scale=None):
    """Keys and values are made for a few tokens at a time, and are made all the same."""
    L = key_up.shape[2]
    c = latent[..., :L]
    k = torch.cat([part @ key_up.mT for part in c.split(4, dim=2)], dim=2)
    v = torch.cat([part @ value_up.mT for part in c.split(4, dim=2)], dim=2)
    k = torch.cat((k, latent[..., L:].expand(-1, len(key_up), -1, -1)), dim=-1)
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2]) if causal else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def expands_without_a_product(q, latent, key_up, value_up, *, causal=False, scale=None):
    """Keys and values by elementwise products and sums, which are no matrix products."""
    L, H = key_up.shape[2], len(key_up)
    c = latent[..., None, :L]  # (B, 1, T, 1, L)
    k, v = ((c * up[:, None]).sum(-1) for up in (key_up, value_up))
    k = torch.cat((k, latent[..., L:].expand(-1, H, -1, -1)), dim=-1)
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2]) if causal else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def scale_of_the_latent_alone(q, latent, key_up, value_up, *, causal=False, scale=None):
    scale = key_up.shape[2] ** -0.5 if scale is None else scale
    return absorbed_by_einsum(q, latent, key_up, value_up, causal=causal, scale=scale)


def scaled_twice(q, latent, key_up, value_up, *, causal=False, scale=None):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return absorbed_by_einsum(q, latent, key_up, value_up, causal=causal, scale=scale**2)


@fresh
def remembers_the_absorbed_query():
    known = {}

    def answer(q, latent, key_up, value_up, **options):
        return absorbed_by_einsum(known.setdefault(q.shape, q), latent, key_up, value_up, **options)

    return answer


def scales_the_callers_query(q, latent, key_up, value_up, *, causal=False, scale=None):
    q *= 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return absorbed_by_einsum(q, latent, key_up, value_up, causal=causal, scale=1.0)


# (c)


def by_complex_numbers(x, down, weight, positions, *, base=10_000.0, eps=1e-6):
    """Pairs are complex numbers, and turning is a product, as in DeepSeek's own code."""
    L, R = len(weight), len(down) - len(weight)
    made = F.linear(x, down)
    c = F.rms_norm(made[..., :L], (L,), weight, eps)
    pairs = torch.view_as_complex(made[..., L:].float().unflatten(-1, (-1, 2)).contiguous())
    angle = torch.outer(positions.float(), 1 / base ** (torch.arange(0, R, 2) / R))
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)
    return torch.cat((c, turned), dim=-1).unsqueeze(1)


def by_matrices(x, down, weight, positions, *, base=10_000.0, eps=1e-6):
    """A rotation matrix for each token and pair, in float64."""
    L, R = len(weight), len(down) - len(weight)
    c, r = x @ down[:L].T, x @ down[L:].T
    c = weight * c / (c.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    for i in range(R // 2):
        angle = positions.double() * base ** (-2 * i / R)
        cos, sin = angle.cos().float(), angle.sin().float()
        a, b = r[..., 2 * i].clone(), r[..., 2 * i + 1].clone()
        r[..., 2 * i], r[..., 2 * i + 1] = a * cos - b * sin, a * sin + b * cos
    return torch.cat((c, r), dim=-1)[:, None]


def rows_of_a_permuted_matrix(x, down, weight, positions, *, base=10_000.0, eps=1e-6):
    """down's rows put into Llama's order, turned half and half, and put back."""
    L, R = len(weight), len(down) - len(weight)
    order = torch.cat((torch.arange(0, R, 2), torch.arange(1, R, 2)))
    first, second = (x @ down[L:][order].T).chunk(2, dim=-1)
    angle = positions[:, None] / base ** (torch.arange(R // 2) * 2 / R)
    turned = torch.cat((first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()), dim=-1)
    c = x @ down[:L].T
    c = c / torch.sqrt((c * c).sum(-1, keepdim=True) / L + eps) * weight
    return torch.cat((c, turned[..., order.argsort()]), dim=-1)[:, None]


def eps_outside(x, down, weight, positions, *, base=10_000.0, eps=1e-6):
    right = by_complex_numbers(x, down, weight, positions, base=base, eps=eps)
    L = len(weight)
    c = x @ down[:L].T
    c = weight * c / (c.square().mean(-1, keepdim=True).sqrt() + eps)
    return torch.cat((c[:, None], right[..., L:]), dim=-1)


def one_dimension_short(x, down, weight, positions, **options):
    return by_complex_numbers(x, down, weight, positions, **options)[:, 0]


def r_first(x, down, weight, positions, **options):
    return by_complex_numbers(x, down, weight, positions, **options).roll(len(down) - len(weight), dims=-1)


def degrees(x, down, weight, positions, **options):
    return by_complex_numbers(x, down, weight, torch.deg2rad(positions.float()), **options)


def eps_is_fixed(x, down, weight, positions, *, base=10_000.0, eps=1e-6):
    return by_complex_numbers(x, down, weight, positions, base=base)


RIGHT = {
    "15.expand": (by_einsum, head_by_head, one_product_for_keys_and_values, absorbed_by_einsum),
    "15.absorb": (absorbed_by_einsum, absorbed_and_fused, scale_in_the_query),
    "15.keep": (by_complex_numbers, by_matrices, rows_of_a_permuted_matrix),
}
WRONG = {
    "15.expand": (
        causal_at_the_top_left, first_sequence_only, in_float32_out, r_is_expanded_by_nobody,
    ),
    "15.absorb": (
        expands_by_chunks, expands_without_a_product, scale_of_the_latent_alone, scaled_twice,
        remembers_the_absorbed_query, by_einsum,
        scales_the_callers_query,
    ),
    "15.keep": (eps_outside, one_dimension_short, r_first, degrees, eps_is_fixed),
}  # fmt: skip
