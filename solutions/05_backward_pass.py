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

# %% [markdown]
# # 05 · The backward pass
#
# A model learns by gradients, and the gradient of attention wants the weights $P$, which lessons 03 and 04 took such
# pains not to write down. Naive attention simply keeps them: $T \times T$ numbers, for every head of every layer,
# from the forward pass until the backward pass comes by.
#
# **The idea:** keep one number a row instead, the log-sum-exp. With it, any tile of $P$ can be made again where it is
# needed, used, and forgotten. That takes some computing more, and the memory grows with $T$.
#
# You will derive the five gradients, write them first with $P$ at hand and then without it, write the Triton kernel
# that makes $dK$ and $dV$, and fine-tune SmolLM2 with your own backward pass.

# %% tags=["setup"]
from functools import partial

import torch

from llmsys import viz
from llmsys.attention import naive_attention, tiled_attention
from llmsys.attention.backward import backward_stored as library_stored, backward_tiled as library_tiled, differentiable
from llmsys.bench import interleaved, recorded
from llmsys.course import check, hint, measured, mine, predict
from llmsys.hardware.devices import DEVICES
from llmsys.hardware.meters import saved_for_backward, work
from llmsys.hardware.tier import load_triton, tier, triton_device

triton, tl = load_triton()  # Triton decides when it is first imported whether it interprets: before anything else

# %%
viz.backward_pass.overview()

# %% [markdown]
# ## Predict: what does it cost, what does it save?
#
# One head of attention with $T = 4096$ tokens and a head size of 64, in `float32`. The forward pass is two products,
# $Q K^T$ and $P V$. The backward pass wants three gradients, and if $P$ was not stored it wants $P$ again, too. **How many
# times as many floating-point operations as the forward pass does it take then, in its products?**

# %% tags=["predict"]
predict("05.flops", None, "×")

# %% [markdown]
# Between the two passes, naive attention keeps $P$, and tiled attention keeps its output $o$ and the log-sum-exp instead,
# a number a row. (Both keep $q$, $k$ and $v$ as well; leave these out.) **How many times fewer bytes is that?**

# %% tags=["predict"]
predict("05.bytes", None, "×")

# %% [markdown]
# ## The idea: five gradients
#
# Call the loss $L$, and write $dX$ for its gradient with respect to a matrix $X$: it has the shape of $X$, and
# $dX_{ij} = \partial L / \partial X_{ij}$. One head, forwards:
#
# $$ S = \text{scale} \cdot Q K^T \quad (T_q, T_k), \qquad P = \operatorname{softmax}(S) \quad (T_q, T_k), \qquad O = P V \quad (T_q, D_v) \tag{1} $$
#
# What comes after attention hands us $dO$, of shape $(T_q, D_v)$. We want $dQ$, $dK$ and $dV$. Here is one head in
# `float64`, so small that autograd can keep everything. It will tell us whether we are right.

# %%
Tq, Tk, D, scale = 5, 7, 4, 0.5
generator = torch.Generator().manual_seed(0)
leaves = [torch.randn(T, D, dtype=torch.float64, generator=generator, requires_grad=True) for T in (Tq, Tk, Tk)]
steps = [scale * (leaves[0] @ leaves[1].T)]  # S
steps.append(torch.softmax(steps[0], dim=1))  # P
steps.append(steps[1] @ leaves[2])  # O
dO = torch.randn(Tq, D, dtype=torch.float64, generator=generator)
gradients = torch.autograd.grad(steps[2], leaves + steps[:2], dO)
true = dict(zip(("dQ", "dK", "dV", "dS", "dP"), gradients, strict=True))
Q, K, V, S, P, O = (x.detach() for x in leaves + steps)

# %% [markdown]
# ### Through the product $O = P V$
#
# $O_{id} = \sum_j P_{ij} V_{jd}$. A change of $V_{jd}$ changes $O_{id}$ by $P_{ij}$, for every query $i$. A change of
# $P_{ij}$ changes $O_{id}$ by $V_{jd}$, for every column $d$. So
#
# $$ dV_{jd} = \sum_i P_{ij}\, dO_{id}, \quad dV = P^T dO \quad (T_k, D_v) \tag{2} $$
#
# $$ dP_{ij} = \sum_d dO_{id}\, V_{jd}, \quad dP = dO\, V^T \quad (T_q, T_k) \tag{3} $$
#
# It is so with every product: the gradient of one factor is the gradient of the result times the other factor,
# transposed where the shapes want it.

# %% tags=["claim"]
dP = dO @ V.T
print("dV = Pᵀ dO  ", torch.allclose(P.T @ dO, true["dV"]))
print("dP = dO Vᵀ  ", torch.allclose(dP, true["dP"]))

# %% [markdown]
# ### Through the softmax
#
# Rows do not know of each other, so take one: weights $p_j = e^{s_j} / \sum_{j'} e^{s_{j'}}$. A score $s_{j'}$ is in the
# numerator of its own weight, and in the denominator of *all* of them:
#
# $$ \frac{\partial p_j}{\partial s_{j'}} = \begin{cases} p_j\,(1 - p_j) & j = j' \\ -p_j\, p_{j'} & j \ne j' \end{cases} $$
#
# Sum what reaches $s_{j'}$ through every weight of its row:
#
# $$ ds_{j'} = \sum_j dp_j \frac{\partial p_j}{\partial s_{j'}} = p_{j'}\, dp_{j'} - p_{j'} \sum_j p_j\, dp_j $$
#
# The last sum is the same for all $j'$: one number a row, which we call $\delta$ (`delta`). For the whole matrix, with
# $\circ$ for the product element by element,
#
# $$ dS = P \circ (dP - \delta), \qquad \delta_i = \sum_j P_{ij}\, dP_{ij} \quad (T_q,) \tag{4} $$
#
# Read it: $dP_{ij}$ says how fast the loss grows with weight $j$, and $\delta_i$ is the mean of row $i$ under that row's
# own weights. A score whose key costs more than the mean has a gradient above 0, and descent lowers it; one whose key
# costs less is raised; each in proportion to its weight. What one gains the others lose, so each row of $dS$ sums to
# zero. (It must: a number added to a whole row of $S$ does not change $P$.)

# %% tags=["claim"]
delta = (P * dP).sum(dim=1)
dS = P * (dP - delta[:, None])
print("dS = P ∘ (dP − delta)  ", torch.allclose(dS, true["dS"]))
print("rows of dS sum to zero ", torch.allclose(dS.sum(dim=1), torch.zeros(Tq, dtype=torch.float64)))

# %% [markdown]
# ### Through the product $S = \text{scale} \cdot Q K^T$
#
# A product again, with a scale before it:
#
# $$ dQ = \text{scale} \cdot dS\, K \quad (T_q, D_k), \qquad dK = \text{scale} \cdot dS^T Q \quad (T_k, D_k) \tag{5} $$

# %% tags=["claim"]
print("dQ = scale · dS K   ", torch.allclose(scale * dS @ K, true["dQ"]))
print("dK = scale · dSᵀ Q  ", torch.allclose(scale * dS.T @ Q, true["dK"]))

# %% [markdown]
# That is all. Two remarks before you write it down.
#
# **A mask** needs no line of its own here. A key that is hidden has $P_{ij} = 0$, and by (4) then $dS_{ij} = 0$.
#
# **Grouped queries.** $G$ query heads read the same $K$ and $V$. What is used several times gets the *sum* of the
# gradients. You need not even add: stack the rows of a group below each other, as in lesson 03, and $P^T dO$ sums
# over all of them.
#
# ## Exercise (a): from the stored matrix (25 minutes)
#
# All heads and all sequences, with grouped queries. `x.unflatten(1, (Hkv, G)).flatten(2, 3)` stacks a group's rows,
# and `x.mT` transposes the last two dimensions.

# %% tags=["exercise"] exercise="05.backward_stored"
import math


def backward_stored(q, k, v, p, do, *, scale=None):
    """The gradients of q, k and v from the stored weights P.

    q   (B, Hq, Tq, Dk)      do  (B, Hq, Tq, Dv)   the gradient of o
    k   (B, Hkv, Tk, Dk)     p   (B, Hq, Tq, Tk)   softmax(scale · q kᵀ), 0 where a key was masked
    v   (B, Hkv, Tk, Dv)     Hq = G · Hkv: query head h reads key head h // G

    Returns (dq, dk, dv), in this order, of the shapes and dtypes of q, k and v. The scale is 1/√Dk where it is None.
    Not allowed: autograd, and torch's own backward passes.
    """
    ### BEGIN SOLUTION
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    G = q.shape[1] // k.shape[1]
    Q, P, dO = (x.unflatten(1, (k.shape[1], G)).flatten(2, 3) for x in (q, p, do))  # (B, Hkv, G·Tq, …)
    dV = P.mT @ dO  # (Tk, G·Tq) times (G·Tq, Dv): summed over queries and over the group
    dP = dO @ v.mT  # (G·Tq, Dv) times (Dv, Tk)
    delta = (P * dP).sum(dim=-1, keepdim=True)  # (G·Tq, 1)
    dS = P * (dP - delta)
    dQ = scale * (dS @ k)  # (G·Tq, Tk) times (Tk, Dk)
    dK = scale * (dS.mT @ Q)  # (Tk, G·Tq) times (G·Tq, Dk)
    return dQ.view(q.shape), dK, dV
    ### END SOLUTION


# %% tags=["check"] exercise="05.backward_stored"
check("05.backward_stored", backward_stored)

# %% [markdown]
# ## Without the matrix
#
# (2) to (5) mention $P$ three times, and $dP$ and $dS$ are as large. Cut the keys and the queries into tiles, as in
# lesson 03: then (2), (3) and (5) need only a tile of each at a time, and add up. Two things are in the way. A tile
# of $P$ has to come from somewhere; and $\delta$ sums over a whole row.
#
# **P again.** In the forward pass, a tile of weights was not final before the last key had gone by: that was what the
# running maximum was for. Now the row is over. Its log-sum-exp is known, $\mathrm{lse}_i = \ln \sum_j e^{S_{ij}}$,
# and with it every weight at once:
#
# $$ P_{ij} = \frac{e^{S_{ij}}}{\sum_{j'} e^{S_{ij'}}} = e^{S_{ij} - \mathrm{lse}_i} \tag{6} $$
#
# No maximum, nothing to rescale; and since no weight is above 1, no exponent is above 0, so nothing overflows. This
# is why lesson 03 stored the lse.
#
# **Delta without the row.** Put (3) into the sum of (4), and change the order of the two sums:
#
# $$ \delta_i = \sum_j P_{ij} \sum_d dO_{id}\, V_{jd} = \sum_d dO_{id} \sum_j P_{ij} V_{jd} = \sum_d dO_{id}\, O_{id} \tag{7} $$
#
# A sum over $T_k$ keys has become one over $D_v$ columns, of two tensors that are at hand:
# `delta = (do * o).sum(-1)`.

# %% tags=["claim"]
lse = torch.logsumexp(S, dim=1)
print("P = exp(S − lse)         ", torch.allclose(torch.exp(S - lse[:, None]), P))
print("delta = rowsum(dO ∘ O)   ", torch.allclose((dO * O).sum(dim=1), delta))

# %% [markdown]
# Is it not a waste to compute $S$ twice? Ask an H100, for one head with $T = 4096$ and $D = 64$ in `bfloat16`. One
# side: $P$ is written by the forward pass, and read again by the backward pass. The other: one more product, and the
# exponentials of (6).

# %% tags=["claim"]
h100, T = DEVICES["H100 SXM"], 4096
write_and_read = 2 * T * T * 2 / h100.bandwidth
product, exponentials = 2 * T * T * 64 / h100.flops["bfloat16"], T * T / h100.exponentials
print(f"P to memory and back {write_and_read * 1e6:4.1f} µs")
print(f"S once more          {product * 1e6:4.1f} µs, and its exponentials {exponentials * 1e6:4.1f} µs")
stored = 32 * 32 * T * T * 2
print(f"P of 32 layers with 32 heads, one sequence of {T} tokens: {stored / 2**30:.0f} GiB")

# %% [markdown]
# By this count, to compute it again takes a third of the time of storing it. It is a count, by the data sheet, and no
# measurement: it has each side of the exchange alone, and a kernel may hide a part of either behind its other work. But
# on a machine that computes so much faster than it moves, recomputation need not be a price that is paid for memory. What
# is certain is the memory: 32 GiB need not be there, on a GPU of 80 GB. <!-- source: an H100 SXM has 80 GB, NVIDIA's data
# sheet -->
#
# ## Exercise (b): tile by tile (45 minutes)
#
# The same gradients, from what the tiled forward pass returned. You are free in the order of the two loops. The sums
# say what each order costs: $dK$ and $dV$ of a tile of keys are sums over queries, $dQ$ of a tile of queries is a sum
# over keys. With keys outside, $dK$ and $dV$ can wait on the chip until all queries have gone by, and each pair of
# tiles adds its share to $dQ$ in memory. Five products for each pair: $S$, $dV$, $dP$, $dQ$, $dK$.
#
# - **Causal**, as ever: query $i$ sees the keys $j \le i + T_k - T_q$. So the first query that sees key $j$ is
#   $j - (T_k - T_q)$, or query 0 where that is below 0, and the tiles of queries before its own take no part. In a tile
#   that is cut, select what is seen, do not multiply by 0 and 1: the lse knows nothing of a hidden score, whose
#   exponential may well be $\infty$.
# - **Rows without a key** have $\mathrm{lse} = -\infty$, and no gradient. If you select in $P$, after the exponential,
#   they need nothing more. If you put $-\infty$ into $S$ instead, mind that $-\infty - (-\infty)$ is NaN.
# - **Grouped and ragged**, as in lesson 03.

# %% tags=["exercise"] exercise="05.backward_tiled"
import math

import torch


def backward_tiled(q, k, v, o, lse, do, *, causal=False, scale=None, block_q=64, block_k=64):
    """The gradients of q, k and v from what the tiled forward pass returned, o and lse. P is made again.

    q   (B, Hq, Tq, Dk)      o    (B, Hq, Tq, Dv)       k  (B, Hkv, Tk, Dk)
    do  (B, Hq, Tq, Dv)      lse  (B, Hq, Tq), fp32     v  (B, Hkv, Tk, Dv)

    causal    query i sees the keys up to i + Tk − Tq; a row that sees none has lse = −∞, and no gradient
    block_q   queries of a tile, of each query head
    block_k   keys of a tile

    Returns (dq, dk, dv), of the shapes and dtypes of q, k and v: float32 or float64. A pair of tiles takes five of
    torch's matrix products; a pair in which no query sees a key takes none.
    Not allowed: autograd; torch's own backward passes; anything with Tq × Tk elements, be it in a list of tiles.
    """
    ### BEGIN SOLUTION
    (Hkv, Tk), Tq = k.shape[1:3], q.shape[2]
    G = q.shape[1] // Hkv
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    delta = (do * o).sum(dim=-1)  # (B, Hq, Tq)
    dq, dk, dv = torch.zeros_like(q), torch.empty_like(k), torch.empty_like(v)
    for j in range(0, Tk, block_k):
        K, V = k[:, :, j : j + block_k], v[:, :, j : j + block_k]  # (B, Hkv, keys, D)
        dK, dV = torch.zeros_like(K), torch.zeros_like(V)
        first = 0
        if causal:
            first = max(j - (Tk - Tq), 0) // block_q * block_q
        for i in range(first, Tq, block_q):
            rows = slice(i, i + block_q)
            Q, dO, L, Delta = (x[:, :, rows].unflatten(1, (Hkv, G)).flatten(2, 3) for x in (q, do, lse, delta))
            P = torch.exp(scale * (Q @ K.mT) - L[..., None])  # (B, Hkv, G·rows, keys)
            if causal:
                query = torch.arange(i, min(i + block_q, Tq), device=q.device).repeat(G)  # of each row of the tile
                key = torch.arange(j, j + K.shape[2], device=q.device)
                P = P.masked_fill(key > query[:, None] + Tk - Tq, 0.0)
            dV += P.mT @ dO
            dS = P * (dO @ V.mT - Delta[..., None])
            dK += dS.mT @ Q
            dq[:, :, rows] += (dS @ K).unflatten(2, (G, -1)).flatten(1, 2)
        dk[:, :, j : j + block_k] = scale * dK
        dv[:, :, j : j + block_k] = dV
    return scale * dq, dk, dv
    ### END SOLUTION


# %% tags=["check"] exercise="05.backward_tiled"
check("05.backward_tiled", backward_tiled)

# %% [markdown]
# Count the operations of all of it, for 4096 tokens.

# %% tags=["claim"]
stored, tiled = (
    mine("backward_stored", default=library_stored),
    mine("backward_tiled", default=library_tiled),
)
q, k, v, do = (torch.randn(1, 1, 4096, 64) for _ in range(4))  # (B, H, T, D)
p = torch.softmax(q @ k.mT / 8, dim=-1)
with work() as forwards:
    o, lse = tiled_attention(q, k, v, return_lse=True, block_q=512, block_k=512)
with work() as from_stored:
    stored(q, k, v, p, do)
with work() as recomputed:
    tiled(q, k, v, o, lse, do, block_q=512, block_k=512)
for name, done in (("forwards", forwards), ("backwards, P stored", from_stored), ("backwards, P again", recomputed)):
    ratio = done.matmul_flops / forwards.matmul_flops
    print(f"{name:20} {done.matmul_flops:15,} FLOP in products, {ratio:.1f} × as many as forwards")

# %% tags=["measure"]
measured("05.flops", recomputed.matmul_flops / forwards.matmul_flops, "×")

# %% [markdown]
# Each of the two products forwards has two backwards, one for each of its factors: four. The fifth is $S$ again. So what
# recomputing adds is a quarter. <!-- source: the table above, 5/4 --> And 2.5 is the convention by which the speed of a
# backward pass is stated: whatever a kernel really computes, five products are counted.
#
# Now what is kept. Torch has hooks on everything that autograd saves, and `saved_for_backward` counts with them. (On
# torch's `meta` device tensors have a shape and no memory, so that even the longest costs nothing here.)
# `differentiable` makes an attention that autograd can use out of a forward pass and a backward pass: here out of
# lesson 03's and yours.

# %% tags=["claim"]
attention = differentiable(
    partial(tiled_attention, block_q=1024, block_k=1024), partial(tiled, block_q=128, block_k=128)
)
kept = {}
for T in (1024, 4096, 16384):
    for name, function in (("naive", naive_attention), ("tiled", attention)):
        q, k, v = (torch.empty(1, 1, T, 64, device="meta", requires_grad=True) for _ in range(3))
        with saved_for_backward(q, k, v) as saved:
            function(q, k, v)
        kept[name, T] = saved.bytes
        shapes = " and ".join(map(str, saved.shapes))
        print(f"T = {T:6,}, {name}: keeps {saved.bytes:13,} B, {shapes}")

# %% tags=["measure"]
measured("05.bytes", kept["naive", 4096] / kept["tiled", 4096], "×")

# %% [markdown]
# $T^2$ elements against $T (D + 1)$: the ratio is about $T / D$, and grows with every token. (The output $o$ would
# often be there anyway: the layer behind attention keeps its input. Then what is left is the lse, one number a row.)
#
# ## One kernel for dK and dV
#
# On a GPU, the outer loop becomes a grid again. With a program for each tile of *keys*, $dK$ and $dV$ stay in its
# registers, and queries stream by. But $dQ$? Every program has a share in every row of it. They would have to add to
# the same memory at the same time: with atomic additions, in whatever order they happen to arrive. A sum of floats
# depends on its order, so the gradients would differ in their last bits from run to run.
#
# The library takes the other way: **two kernels**. One has programs for tiles of keys, and makes $dK$ and $dV$. The
# other has programs for tiles of queries, walks over the keys as the forward pass does, and makes $dQ$. Each computes
# $S$ and $dP$ for itself: four products and three, seven in all where five would do. In return no program writes
# where another one does, and the same inputs give the same bits.
#
# ## Exercise (c): the kernel (45 minutes)
#
# You write the first of the two. The skeleton has found the program's keys, has loaded $k$ and $v$, and stores the
# results. You write what is between: walk over the rows of all queries that see these keys. Everything you need you
# had in lesson 04:
#
# - **Rows.** Row $r$ of a group is query $r // G$ of query head $h\,G + r \% G$, and there are $G \cdot T_q$ of them.
#   All heads of the group pass through the same program, so their sum needs no further thought. (In (a) and (b) a
#   group's rows were stacked head after head. Here they are interleaved, as in lesson 04: the sums would not care, but
#   with early queries first, a causal loop can begin at the first one that sees a key of the tile.)
# - **Base two.** `lse_log2` is $\mathrm{lse} \cdot \log_2 e$, so $P = 2^{S - \texttt{lse\_log2}}$ with $S = Q K^T
#   \cdot \texttt{scale\_log2}$. For a row without a key it is $+\infty$, and $2^{-\infty} = 0$.
# - **Which way round?** The skeleton does not say whether $S$ is (BLOCK_M, BLOCK_N) or its transpose. With the first,
#   `dv` and `dk` need `tl.trans(p)` and `tl.trans(ds)`. With the second they do not, and that is how the library does
#   it.
# - **Causal.** Start at the tile of the first row that sees the first key, and mask: `tl.where` on $P$, after the
#   exponential. A product with 0 would not do. A hidden score may be far above the lse, and $\infty \cdot 0$ is NaN.
# - **Scale.** The skeleton multiplies `dk` by it when it stores. Leave $dS$ as it is.
# - **Dtypes.** Both operands of a `tl.dot` want one dtype: `p.to(do.dtype)`, `ds.to(q.dtype)`. And each wants
#   `input_precision=PRECISION`: without it, a GPU rounds `float32` to ten bits of mantissa.

# %% tags=["exercise"] exercise="05.dkdv_kernel"
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def dkdv_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_log2_ptr, delta_ptr, dk_ptr, dv_ptr,
    q_stride_b, q_stride_h, q_stride_t, k_stride_b, k_stride_h, k_stride_t,
    v_stride_b, v_stride_h, v_stride_t, do_stride_b, do_stride_h, do_stride_t,
    Hkv, Tq, Tk, scale, scale_log2,
    G: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of BLOCK_N keys of one key head, from all queries of the G heads that read it.

    q_ptr … do_ptr             q (B, G·Hkv, Tq, DK), k (B, Hkv, Tk, DK), v (B, Hkv, Tk, DV), do (B, G·Hkv, Tq, DV),
                               each with its strides for batch, head and token
    lse_log2_ptr, delta_ptr    (B, G·Hkv, Tq), float32, contiguous; lse in base two, +∞ for a row without a key
    scale_log2                 scale · log2(e)
    program_id(0), (1)         the tile of keys; the key head of all sequences, b · Hkv + h
    BLOCK_M                    rows of a tile: row r is query r // G of head h · G + r % G
    PRECISION                  input_precision of every tl.dot
    """
    b = tl.program_id(1) // Hkv
    h = tl.program_id(1) % Hkv
    first_key = tl.program_id(0) * BLOCK_N
    keys = first_key + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    columns_k = tl.arange(0, BLOCK_DK)
    columns_v = tl.arange(0, BLOCK_DV)
    k_inside = (keys < Tk)[:, None] & (columns_k < DK)[None, :]
    v_inside = (keys < Tk)[:, None] & (columns_v < DV)[None, :]
    k_at = k_ptr + b * k_stride_b + h * k_stride_h + keys[:, None] * k_stride_t + columns_k[None, :]
    v_at = v_ptr + b * v_stride_b + h * v_stride_h + keys[:, None] * v_stride_t + columns_v[None, :]
    k = tl.load(k_at, mask=k_inside, other=0.0)  # (BLOCK_N, BLOCK_DK)
    v = tl.load(v_at, mask=v_inside, other=0.0)  # (BLOCK_N, BLOCK_DV)
    dk = tl.zeros((BLOCK_N, BLOCK_DK), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_DV), tl.float32)
    ### BEGIN SOLUTION
    start = 0
    if CAUSAL:
        start = tl.maximum(first_key - (Tk - Tq), 0) * G // BLOCK_M * BLOCK_M
    for row in range(start, G * Tq, BLOCK_M):
        rows = row + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
        exists = rows < G * Tq
        query = rows // G
        head = h * G + rows % G
        q_at = q_ptr + b * q_stride_b + (head * q_stride_h + query * q_stride_t)[:, None] + columns_k[None, :]
        do_at = do_ptr + b * do_stride_b + (head * do_stride_h + query * do_stride_t)[:, None] + columns_v[None, :]
        q = tl.load(q_at, mask=exists[:, None] & (columns_k < DK)[None, :], other=0.0)  # (BLOCK_M, BLOCK_DK)
        do = tl.load(do_at, mask=exists[:, None] & (columns_v < DV)[None, :], other=0.0)  # (BLOCK_M, BLOCK_DV)
        number = (b * Hkv * G + head) * Tq + query
        lse_log2 = tl.load(lse_log2_ptr + number, mask=exists, other=0.0)  # (BLOCK_M,)
        delta = tl.load(delta_ptr + number, mask=exists, other=0.0)
        p = tl.exp2(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2 - lse_log2[:, None])
        if CAUSAL:
            p = tl.where(keys[None, :] <= query[:, None] + Tk - Tq, p, 0.0)
        dv += tl.dot(tl.trans(p.to(do.dtype)), do, input_precision=PRECISION)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
        ds = p * (dp - delta[:, None])
        dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision=PRECISION)
    ### END SOLUTION
    at = (tl.program_id(1) * Tk + keys)[:, None]  # dk and dv are contiguous
    tl.store(dk_ptr + at * DK + columns_k[None, :], (dk * scale).to(dk_ptr.dtype.element_ty), mask=k_inside)
    tl.store(dv_ptr + at * DV + columns_v[None, :], dv.to(dv_ptr.dtype.element_ty), mask=v_inside)


# %% tags=["check"] exercise="05.dkdv_kernel"
check("05.dkdv_kernel", dkdv_kernel)

# %% [markdown]
# With the forward kernel of lesson 04, your kernel, and the library's for $dQ$, an attention is complete: the library's
# backward pass launches the kernel that it is given as `dkdv_kernel` in place of its own. SmolLM2's heads, three queries
# to a key, some ragged number of tokens:

# %% tags=["claim"]
from llmsys.attention import flash_attention
from llmsys.attention.flash.backward import backward as flash_backward
from llmsys.attention.flash.backward_kernels import flash_dkdv_kernel

kernel = mine("dkdv_kernel", default=flash_dkdv_kernel)


def with_your_kernel(q, k, v, o, lse, do, *, causal, scale):
    return flash_backward(q, k, v, o, lse, do, None, causal, scale, "ieee", dkdv_kernel=kernel)


generator = torch.Generator().manual_seed(0)
shapes = (1, 9, 50, 64), (1, 3, 50, 64), (1, 3, 50, 64), (1, 9, 50, 64)  # q, k, v, do
q, k, v, do = (torch.randn(shape, generator=generator).to(triton_device()).requires_grad_() for shape in shapes)
yours = torch.autograd.grad(differentiable(flash_attention, with_your_kernel)(q, k, v, causal=True), (q, k, v), do)
theirs = torch.autograd.grad(naive_attention(q, k, v, causal=True), (q, k, v), do)
for name, a, b in zip(("dq", "dk", "dv"), yours, theirs, strict=True):
    print(f"{name} {tuple(a.shape)} agrees with autograd's: {torch.allclose(a, b, atol=1e-4)}")

# %% [markdown]
# ## Watch it
#
# A walk through the backward pass, step by step: a tile of keys waits, with its two sums; tiles of queries come by,
# each with its $dO$, its lse and its $\delta$; a tile of $P$ is made again and used. Look at what is made, what
# grows, and what is forgotten. Then turn causality on: which tiles of queries see the last tile of keys? (The walk is that
# of the library's `backward_tiled`, not of yours, which may have its loops the other way round.)

# %% tags=["widget"]
viz.backward_pass.stepper()

# %% [markdown]
# ## Measure
#
# On this machine, with torch, for 2 heads with 1024 tokens: from the stored matrix, against recomputing it in tiles of 128.
# Recomputing has 1.25 times as many operations in products, <!-- source: counted above --> and a dozen calls of torch for
# each of 64 pairs of tiles, instead of a dozen in all. But a call goes over 128 KiB, which stay in a cache, instead of
# 8 MiB. **How many times as long does it take?** (Below 1 means that recomputing is faster.) <!-- source: 2 · 128² and
# 2 · 1024² elements of 4 bytes -->

# %% tags=["predict"]
predict("05.time", None, "×")

# %% tags=["measure"]
functions = {
    "stored": lambda q, k, v, p, o, lse, do: stored(q, k, v, p, do),
    "recomputed": lambda q, k, v, p, o, lse, do: tiled(q, k, v, o, lse, do, block_q=128, block_k=128),
}
ms = {}
print("     T   P stored, ms   recomputed, ms   kept for it, MiB: P    o and lse")
for T in (256, 512, 1024, 2048):
    q, k, v, do = (torch.randn(1, 2, T, 64) for _ in range(4))
    p = torch.softmax(q @ k.mT / 8, dim=-1)
    o, lse = tiled_attention(q, k, v, return_lse=True)
    times = interleaved(functions, [(q, k, v, p, o, lse, do)], repeats=5)
    ms[T] = [times[name].median * 1e3 for name in functions]
    print(f"{T:6,} {ms[T][0]:14.1f} {ms[T][1]:16.1f} {p.nbytes / 2**20:22.1f} {(o.nbytes + lse.nbytes) / 2**20:12.2f}")
measured("05.time", ms[1024][1] / ms[1024][0], "×")

# %% [markdown]
# Short sequences pay for the many small operations. Where recomputing overtakes, with more to compute, depends on the
# machine: a matrix that has outgrown the caches travels at every operation, and a tile does not. One thread is even at
# about a thousand tokens, and ahead at two thousand. With sixteen cores it is far behind at both: a tile is too little
# to keep them busy. <!-- source: measured on this course's laptop tier, and on 16 cores beside an H100: 5.0 against 23.5
# ms, 21.9 against 102.4 ms -->
#
# On a GPU the whole walk is in two kernels, and there the comparison that matters is with the others that recompute:
# all fused kernels do. On an H100 the library's were timed beside their peers, on the shapes of lesson 04's table.
# (`flash` is what you have just written a half of; `hopper` is its sequel, with the means of lesson 06, and comes in a
# deterministic form and in a faster one.)

# %% tags=["measure"]
viz.charts.attention_speed(recorded("attention_backward"))

# %% tags=["claim"]
table = [row for row in recorded("attention_backward").rows if row["sweep"] == "table"]
rows = {(row["name"], row["D"], row["T"], row["causal"]): row for row in table}
shapes = sorted({key[1:] for key in rows})
peers = [name for name in ("FA2", "cuDNN", "FlexAttention") if any(row["name"] == name for row in table)]
for name in peers:
    ahead = sum(rows["flash", *shape]["tflops"] > rows[name, *shape]["tflops"] for shape in shapes)
    print(f"shapes on which flash is faster than {name:14} {ahead:2} of {len(shapes)}")
for name in ("flash", *peers):
    extra = rows[name, 64, 16384, True]["extra_bytes"]
    print(f"extra memory of {name:14} with 32 heads of 64 and 16,384 tokens, causal: {extra / 2**20:6.1f} MiB")

# %% [markdown]
# Five products are counted, and `flash` computes seven: its tensor cores do 1.4 times as much as the figure says. <!--
# source: 7/5 --> It is ahead of FA2 all the same, whose products are not `wgmma` (lesson 04), and of FlexAttention, which
# comes from the same compiler and takes seven products, too. Of cuDNN it falls short on nearly all shapes. The extra
# memory hints at why. What flash needs beside the gradients is lse and delta, two numbers a row. What cuDNN needs is
# just as much as a sum for $dQ$ in `float32` would take, 128 MiB for 16,384 tokens of 32 · 64 elements, and a number a
# row: it seems to compute five products, and to add $dQ$ up in memory. (FA2 needs such a sum, too, and as much again.) <!--
# source: 2^27 + 2^21 bytes recorded for cuDNN; 16,384 · 2048 · 4 = 2^27, 16,384 · 32 · 4 = 2^21; FA2: 2^28 + 2^21 -->
#
# ## Your backward pass trains a model
#
# SmolLM2 on the course's corpus, the sources of SymPy: a few steps of fine-tuning, forwards with lesson 03's tiles,
# backwards with yours. Then the same model again, with torch's fused attention in both directions. The losses should
# be the same, step by step; each is printed as soon as its step is done, which may take some seconds. (Each step sees
# another batch, so the loss need not fall from one to the next.)

# %% tags=["engine"]
from llmsys.models import load_model
from llmsys.training import Corpus, TrainConfig, train

few_steps = TrainConfig(steps=3, batch=1, context=64, warmup=1, evaluate_batches=1)
attentions = {"yours": differentiable(tiled_attention, tiled), "sdpa": "sdpa"}
losses = {}
for name, attention in attentions.items():
    print(f"{name:6}", end="", flush=True)
    model = load_model(device=triton_device())
    losses[name] = train(
        model, Corpus.load(model.tokenizer, files=8), few_steps, attention=attention,
        on_step=lambda step: print(f" {step.loss:.4f}", end="", flush=True),
    ).losses  # fmt: skip
    print()

# %% tags=["engine", "claim"]
difference = max(abs(a - b) for a, b in zip(losses["yours"], losses["sdpa"], strict=True))
print("the losses agree to a thousandth, in each of the three steps:", difference < 1e-3)

# %% [markdown]
# (`llmsys train --attention flash` trains for longer, on a GPU with lesson 04's kernel and this lesson's.)
#
# ## What production does differently
#
# - **FlashAttention-2** ([2023](https://arxiv.org/abs/2307.08691), algorithm 2) is your exercise (b): programs for
#   tiles of keys, five products, and $dQ$ by atomic additions into a `float32` buffer, which a small kernel converts
#   at the end. In its code, that is `compute_dq_dk_dv_1colblock` in `csrc/flash_attn/src/flash_bwd_kernel.h`; delta
#   comes from `compute_dot_do_o` in `flash_bwd_preprocess_kernel.h`. With `deterministic=True`, programs add into
#   several buffers, which are then summed in order.
# - **FlashAttention-3** (`hopper/mainloop_bwd_sm90_tma_gmma_ws.hpp`) lets a warp of its own add $dQ$ to memory, by
#   the Tensor Memory Accelerator. Deterministic, it makes the programs wait for their turn at a semaphore,
#   `dq_semaphore`. The library's `hopper` goes the same way: lesson 06 has the tools for it.
# - **Triton's tutorial**, `06-fused-attention.py`, has both walks in one kernel: `_attn_bwd_dkdv`, then
#   `_attn_bwd_dq`, seven products as ours. **FlexAttention**'s template,
#   `torch/_inductor/kernel/flex/templates/flex_backwards.py.jinja`, gives some programs the one walk and some the
#   other.
# - **cuDNN**'s graph has a switch for it, `set_deterministic_algorithm`. For all of torch it is
#   `torch.use_deterministic_algorithms(True)`.
# - **Recomputation** is older and more general: whole layers are computed twice to save what they would keep.
#   [Korthikanti et al., 2022](https://arxiv.org/abs/2205.05198), found that the $T \times T$ part of attention was
#   most of what was worth it, and called it selective. With FlashAttention that part is gone.
#
# ## Do you have it?
#
# <details><summary><b>1.</b> The forward pass needs a running maximum and rescales its sums. Why does the backward pass need neither?</summary>
#
# Because the sum of the whole row is known by then. exp(S − lse) is the final weight, whichever tile it is in, and
# never above 1. What had to be corrected afterwards in the forward pass is right from the start.
# </details>
#
# <details><summary><b>2.</b> A colleague stores delta in the forward pass, to save the backward pass a kernel. What is wrong with the plan?</summary>
#
# delta is rowsum(dO ∘ O), and dO is not known before the backward pass has come through all later layers. What the
# forward pass can keep is O and lse, and that is what it keeps.
# </details>
#
# <details><summary><b>3.</b> You train twice with the same seed and the same data on the same GPU, and the losses differ from the third decimal of step 200
# on. Which line of a FlashAttention backward may be at fault, and what are two ways out?</summary>
#
# dQ += dS K, by atomic additions: whichever program comes first adds first, and float additions are not associative.
# Either programs take turns in a fixed order, or a second kernel has a program for each tile of queries, which makes
# dQ alone, for two products more.
# </details>
#
# **Next:** lesson 06, in which the tensor cores no longer wait.
