"""The backward pass in PyTorch: the gradients of q, k and v, once from the stored weights, once without them.

The forward pass was S = scale · q kᵀ, P = softmax(S), o = P v. Backwards, from dO, the gradient of o, and row by row:

    dV = Pᵀ dO                       (Tk, Dv)     a value's gradient: a sum over the queries that used it
    dP = dO vᵀ                       (Tq, Tk)
    dS = P ∘ (dP − delta)            (Tq, Tk)     softmax: p_j depends on every score of the row, by their sum
    delta = rowsum(P ∘ dP)           (Tq,)
    dQ = scale · dS k                (Tq, Dk)
    dK = scale · dSᵀ q               (Tk, Dk)

`backward_stored` is these lines. It needs P, Tq · Tk numbers a head that the forward pass has to keep.

`backward_tiled` needs o and one number a row instead, the log-sum-exp. Any tile of P is exp(S − lse) again: a product
that was done before, and no running maximum, for the whole row's sum is known. And delta, a sum over the whole row of
the matrix that is not there, is a sum over the head size as well:

    delta_i = Σ_j P_ij dP_ij = Σ_j P_ij (dO_i · v_j) = dO_i · (Σ_j P_ij v_j) = dO_i · o_i

So a tile of the matrix is made, used in five products, and forgotten. The walk is that of FlashAttention-2: a tile of
keys and values stays, with its dK and dV, while the queries that see it stream by; dQ is a sum over keys, and each
visit adds to it in memory. (https://arxiv.org/abs/2205.14135, appendix B.2 and algorithm 4;
https://arxiv.org/abs/2307.08691, algorithm 2.) `llmsys.attention.flash.backward_kernels` is the same in Triton, with a
walk of its own for dQ.

`differentiable` joins a forward pass and a backward pass of one's own to an attention that autograd can use.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmsys.attention.contract import Attention, check_arguments

Gradients = tuple[Tensor, Tensor, Tensor]


def backward_stored(
    q: Float[Tensor, "B Hq Tq Dk"],
    k: Float[Tensor, "B Hkv Tk Dk"],
    v: Float[Tensor, "B Hkv Tk Dv"],
    p: Float[Tensor, "B Hq Tq Tk"],
    do: Float[Tensor, "B Hq Tq Dv"],
    *,
    scale: float | None = None,
) -> tuple[Float[Tensor, "B Hq Tq Dk"], Float[Tensor, "B Hkv Tk Dk"], Float[Tensor, "B Hkv Tk Dv"]]:
    """dq, dk and dv from the weights p that the forward pass kept, as autograd takes them of naive attention.

    A mask needs no mention: where p is 0, so is dS. Raises ValueError where shapes do not go together.
    """
    scale = check_arguments(q, k, v, scale=scale)
    _check_shape("p", p, (*q.shape[:3], k.shape[2]))
    _check_shape("do", do, (*q.shape[:3], v.shape[3]))
    rows = tuple(_group(x, k.shape[1]) for x in (q, p, do))  # a group's heads below each other: (B, Hkv, G · Tq, …)
    Q, P, dO = (x.to(_wide(q)) for x in rows)
    K, V = k.to(_wide(q)), v.to(_wide(q))
    dV = P.mT @ dO
    dP = dO @ V.mT
    delta = (P * dP).sum(dim=-1, keepdim=True)
    dS = P * (dP - delta)
    dQ = scale * (dS @ K)
    dK = scale * (dS.mT @ Q)
    return dQ.view(q.shape).to(q.dtype), dK.to(k.dtype), dV.to(v.dtype)


def backward_tiled(
    q: Float[Tensor, "B Hq Tq Dk"],
    k: Float[Tensor, "B Hkv Tk Dk"],
    v: Float[Tensor, "B Hkv Tk Dv"],
    o: Float[Tensor, "B Hq Tq Dv"],
    lse: Float[Tensor, "B Hq Tq"],
    do: Float[Tensor, "B Hq Tq Dv"],
    *,
    causal: bool = False,
    scale: float | None = None,
    block_q: int = 64,
    block_k: int = 64,
) -> tuple[Float[Tensor, "B Hq Tq Dk"], Float[Tensor, "B Hkv Tk Dk"], Float[Tensor, "B Hkv Tk Dv"]]:
    """dq, dk and dv from what the tiled forward pass returns; P is made again, block_q × block_k of it at a time.

    Parameters
    ----------
    o, lse
        What the forward pass gave for q, k, v, `causal` and `scale`. A row without a key (lse = −∞) has no gradient.
    do
        The gradient of o.
    block_q, block_k
        Rows of a query tile (of each query head), and of a tile of keys and values.

    Raises ValueError where shapes do not go together, or a tile has no row.
    """
    scale = check_arguments(q, k, v, scale=scale)
    for name, x, shape in (("o", o, (*q.shape[:3], v.shape[3])), ("lse", lse, q.shape[:3])):
        _check_shape(name, x, tuple(shape))
    _check_shape("do", do, tuple(o.shape))
    for name, block in (("block_q", block_q), ("block_k", block_k)):
        if block < 1:
            raise ValueError(f"{name} must be at least 1 row, got {block}")
    (Hkv, Tk), Tq, wide = k.shape[1:3], q.shape[2], _wide(q)
    if lse.numel() == 0:  # no query: nothing to sum
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    delta = (do.to(wide) * o.to(wide)).sum(dim=-1)  # (B, Hq, Tq)
    dq = torch.zeros_like(q, dtype=wide)
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    for j in range(0, Tk, block_k):
        keys = slice(j, min(j + block_k, Tk))
        K, V = k[:, :, keys].to(wide), v[:, :, keys].to(wide)  # (B, Hkv, keys, D)
        dK, dV = torch.zeros_like(K), torch.zeros_like(V)
        first = max(j - (Tk - Tq), 0) if causal else 0  # bottom-right: query i sees the keys up to i + Tk − Tq
        for i in range(first // block_q * block_q, Tq, block_q):
            rows = slice(i, min(i + block_q, Tq))
            Q, dO, L, Delta = (_group(x[:, :, rows], Hkv).to(wide) for x in (q, do, lse, delta))
            S = scale * (Q @ K.mT)  # (B, Hkv, G · rows, keys)
            P = torch.exp(S - L[..., None])
            if causal and keys.stop - 1 > i + Tk - Tq:  # some row of the tile does not see all of its keys
                query = torch.arange(i, rows.stop, device=q.device)[:, None]
                hidden = torch.arange(j, keys.stop, device=q.device) > query + (Tk - Tq)  # (rows, keys)
                # here and not in S: of a row without a key, lse is −∞, and −∞ − (−∞) would be NaN
                P.unflatten(2, (-1, hidden.shape[0])).masked_fill_(hidden, 0)
            dV += P.mT @ dO
            dS = P * (dO @ V.mT - Delta[..., None])
            dK += dS.mT @ Q
            dq[:, :, rows] += (dS @ K).view(dq[:, :, rows].shape)
        dk[:, :, keys], dv[:, :, keys] = scale * dK, dV
    return dq.mul_(scale).to(q.dtype), dk, dv


def differentiable(forward: Attention, backward: Callable[..., Gradients] = backward_tiled) -> Attention:
    """An attention that autograd differentiates with `backward`, whatever `forward` is made of.

    Parameters
    ----------
    forward
        A stage's function: it is called with return_lse=True, and its own graph, if it has one, is not recorded.
    backward
        backward(q, k, v, o, lse, do, *, causal, scale) -> dq, dk, dv, as `backward_tiled` has it.

    The result has the stages' contract, so it goes where they go: `train(…, attention=differentiable(tiled, mine))`. It
    keeps q, k, v, o and lse for the backward pass. The lse that it returns has no gradient, nor have its gradients.
    """

    class Joined(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v, causal, scale):
            o, lse = forward(q, k, v, causal=causal, scale=scale, return_lse=True)
            ctx.save_for_backward(q, k, v, o, lse)
            ctx.causal, ctx.scale = causal, scale
            ctx.mark_non_differentiable(lse)
            return o, lse

        @staticmethod
        @once_differentiable
        def backward(ctx, do, _):
            gradients = backward(*ctx.saved_tensors, do, causal=ctx.causal, scale=ctx.scale)
            return *gradients, None, None

    def attention(q, k, v, *, causal=False, scale=None, return_lse=False):
        o, lse = Joined.apply(q, k, v, causal, check_arguments(q, k, v, scale=scale))
        return (o, lse) if return_lse else o

    return attention


def _group(x: Tensor, Hkv: int) -> Tensor:
    """x (B, Hq, T, …) as (B, Hkv, G · T, …): the query heads that share a key head, one below the other."""
    return x.unflatten(1, (Hkv, x.shape[1] // Hkv)).flatten(2, 3)


def _wide(x: Tensor) -> torch.dtype:
    """The dtype in which sums are kept: x's own, or fp32 where x has fewer bits."""
    return torch.promote_types(x.dtype, torch.float32)


def _check_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} must have shape {shape} to go with q, k and v, got {tuple(x.shape)}")
