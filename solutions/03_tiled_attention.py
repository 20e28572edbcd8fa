# %% tags=["exercise"] exercise="03.attend_one_query"
import math

import torch


def attend_one_query(q, k, v, *, tile=16):
    """Attention of one query over keys and values that stream in, `tile` of them at a time (equation 3).

    q       (Dk,)    the query
    k       (T, Dk)  keys, T at least 1
    v       (T, Dv)  values

    Returns o (Dv,): softmax(k q / √Dk), as weights, times v. The scale is 1/√Dk.
    Not allowed: torch's softmax and logsumexp; all scores at once; reading k or v twice.
    """
    ### BEGIN SOLUTION
    m = torch.tensor(-math.inf)
    l = torch.tensor(0.0)
    o = torch.zeros(v.shape[1])  # (Dv,)
    for start in range(0, k.shape[0], tile):
        s = k[start : start + tile] @ q / math.sqrt(q.shape[0])  # (tile,)
        m_new = torch.maximum(m, s.max())
        p = torch.exp(s - m_new)
        shrunk = l * torch.exp(m - m_new)
        l = shrunk + p.sum()
        o = o * (shrunk / l) + (p / l) @ v[start : start + tile]
        m = m_new
    return o
    ### END SOLUTION


# %% tags=["exercise"] exercise="03.tiled_attention"
import math

import torch

from llmsys.hardware.memory import DIRECT


def tiled_attention(
    q, k, v, *, causal=False, scale=None, return_lse=False, block_q=64, block_k=64, hbm=DIRECT
):
    """Attention in tiles: query tiles outside, key tiles inside; the state (m, l, o) of equation (4) on the chip.

    q (B, Hq, Tq, Dk)    k (B, Hkv, Tk, Dk)    v (B, Hkv, Tk, Dv)    all in HBM, fp32; Hq = G · Hkv
    causal               query i sees the keys j ≤ i + Tk − Tq (bottom-right)
    scale                None for 1/√Dk
    block_q, block_k     rows of a query tile, keys of a key tile
    hbm                  hbm.load(view) → a copy on the chip; hbm.store(view, value); hbm.empty(shape, name="o") → in HBM

    Returns o (B, Hq, Tq, Dv), and with return_lse also lse (B, Hq, Tq) = m + ln l, both made with hbm.empty, both
    stored once. A query that sees no key: o = 0, lse = −∞. k and v are loaded once per query tile that sees them.
    Not allowed: softmax, logsumexp; anything with Tq · Tk elements.
    """
    ### BEGIN SOLUTION
    B, Hq, Tq, Dk = q.shape
    Hkv, Tk, Dv = v.shape[1:]
    G = Hq // Hkv
    scale = 1 / math.sqrt(Dk) if scale is None else scale
    o = hbm.empty((B, Hq, Tq, Dv), device=q.device, name="o")
    lse = hbm.empty((B, Hq, Tq), device=q.device, name="lse")
    q_groups, o_groups, lse_groups = (x.unflatten(1, (Hkv, G)) for x in (q, o, lse))  # views: (B, Hkv, G, Tq, …)
    for i in range(0, Tq, block_q):
        rows = min(block_q, Tq - i)
        Q = hbm.load(q_groups[..., i : i + rows, :]).flatten(2, 3) * scale  # (B, Hkv, G·rows, Dk)
        m = Q.new_full(Q.shape[:3], -math.inf)
        l = Q.new_zeros(Q.shape[:3])
        O = Q.new_zeros(*Q.shape[:3], Dv)
        last_key = torch.arange(i, i + rows, device=q.device) + Tk - Tq  # (rows,)
        stop = min(max(i + rows + Tk - Tq, 0), Tk) if causal else Tk
        for j in range(0, stop, block_k):
            K = hbm.load(k[:, :, j : min(j + block_k, stop)])  # (B, Hkv, keys, Dk)
            V = hbm.load(v[:, :, j : min(j + block_k, stop)])
            S = Q @ K.mT  # (B, Hkv, G·rows, keys)
            if causal:
                key = torch.arange(j, j + K.shape[2], device=q.device)
                S.unflatten(2, (G, rows)).masked_fill_(key > last_key[:, None], -math.inf)
            m_new = torch.maximum(m, S.amax(dim=-1))
            finite = torch.where(m_new == -math.inf, 0.0, m_new)
            P = torch.exp(S - finite[..., None])
            shrink = torch.exp(m - finite)
            l = l * shrink + P.sum(dim=-1)
            O = O * shrink[..., None] + P @ V
            m = m_new
        some = torch.where(l > 0, l, 1.0)
        hbm.store(o_groups[..., i : i + rows, :], (O / some[..., None]).unflatten(2, (G, rows)))
        hbm.store(lse_groups[..., i : i + rows], (m + torch.log(some)).unflatten(2, (G, rows)))
    return (o, lse) if return_lse else o
    ### END SOLUTION


# %% tags=["exercise"] exercise="03.tiled_bytes"
def tiled_bytes(T, D, block_q, *, itemsize=4, causal=False):
    """Bytes that tiled attention moves between HBM and the chip for one head, with the query tiles outside.

    T tokens, heads of D (Dk = Dv = D), block_q queries a tile, `itemsize` bytes an element of q, k, v and o.
    q and o cross once, lse is stored in fp32 (4 bytes), k and v are loaded for each query tile as far as it sees them.

    Returns an int.
    """
    ### BEGIN SOLUTION
    total = 2 * T * D * itemsize + 4 * T
    for start in range(0, T, block_q):
        seen = min(start + block_q, T) if causal else T
        total += 2 * seen * D * itemsize
    return total
    ### END SOLUTION
