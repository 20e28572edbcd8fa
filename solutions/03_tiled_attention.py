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
# # 03 · Tiled attention
#
# Lesson 02 ended one pass short. A softmax that hands out its weights has to read the row twice, because no weight is
# final before the last element has gone by. Attention never asks for the weights. It asks for a *sum weighted by them*,
# and a sum can be corrected afterwards.
#
# **The idea:** the output is one more running sum. It stands under the same maximum $m$ as $\ell$, and is rescaled together
# with it, so queries, keys and values can be cut into tiles that fit on the chip, and the $T \times T$ matrix of scores is
# never written anywhere. This is
# FlashAttention's forward pass.
#
# You will derive it, write it for a machine that counts every byte, derive what a tile size costs before you measure it,
# compete for the fewest bytes, and let SmolLM2 talk through your tiles.

# %% tags=["setup"]
import torch

from llmsys import viz
from llmsys.attention import STAGES, naive_attention, tiled
from llmsys.attention.cost import naive_cost, tiled_bytes as library_bytes
from llmsys.bench import interleaved, recorded
from llmsys.course import check, hint, measured, mine, predict
from llmsys.lessons.lesson_03_tiled_attention.leaderboard import byte_leaderboard
from llmsys.hardware.memory import H100_SRAM, HBM, KIB
from llmsys.hardware.meters import largest_allocation, work

# %%
viz.tiled_attention.overview()

# %% [markdown]
# ## Predict: how much has to move?
#
# One head of attention: $T = 1024$ tokens, a head size of $D = 64$, `float32`. Naive attention writes the scores $S$ to the
# big memory, reads them for the softmax, writes the weights $P$, and reads them again for $P V$. Each of the two has
# $T^2$ elements.
#
# Tiled attention moves neither. It works through tiles of 64 queries and 64 keys, on a chip that has room for a few of them.
# **How many times fewer bytes does it move than naive attention?** Write down a factor before you compute one.

# %% tags=["predict"]
predict("03.bytes_saved", None, "×")

# %% [markdown]
# ## The idea: one more sum under the same maximum
#
# One query $q$ of size $D_k$ meets $T$ keys. Its scores are $s_j = q \cdot k_j / \sqrt{D_k}$, and its output is
#
# $$ o = \sum_{j=1}^{T} \frac{e^{s_j - m}}{\ell}\, v_j, \qquad m = \max_j s_j, \qquad \ell = \sum_{j=1}^{T} e^{s_j - m} \tag{1} $$
#
# with $o$ and $v_j$ of size $D_v$. Suppose that only the keys before some tile have gone by. Call what (1) gives for *those
# keys alone* $o'$: a correct attention output, over fewer keys, made of $m$ and $\ell$ as they are so far. Now a tile
# arrives. The maximum becomes
# $m_\text{new} = \max(m, \max_{j \in \text{tile}} s_j)$, which never falls, and the denominator, by lesson 02,
#
# $$ \ell_\text{new} = \ell\, e^{m - m_\text{new}} + \sum_{j \in \text{tile}} e^{s_j - m_\text{new}} \tag{2} $$
#
# Every weight inside $o'$ now has the wrong maximum and the wrong denominator, and all of them are wrong *by the same
# factor*. Multiply by $\ell$ to undo the old division, by $e^{m - m_\text{new}}$ to change the maximum, and divide by
# $\ell_\text{new}$. Then add what is new:
#
# $$ o'_\text{new} = o' \cdot \frac{\ell\, e^{m - m_\text{new}}}{\ell_\text{new}} + \sum_{j \in \text{tile}} \frac{e^{s_j - m_\text{new}}}{\ell_\text{new}}\, v_j \tag{3} $$
#
# After the last tile, $o'$ is $o$. Each key and each value was read **once**: the last pass has disappeared.
#
# ## Exercise (a): one query, streaming keys (20 minutes)
#
# Write (2) and (3) for a single query. Start with nothing: $m = -\infty$, $\ell = 0$, $o' = 0$. What you keep between
# tiles is two numbers and one vector of $D_v$.

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

# %% tags=["check"] exercise="03.attend_one_query"
check("03.attend_one_query", attend_one_query)

# %% [markdown]
# ## Divide later
#
# (3) divides in every tile, and undoes it in the next. Leave $o$ undivided instead, a plain sum under $m$, and divide once,
# at the end. For a whole tile of queries, with $S$ and $P$ of shape (rows, keys), $O$ of shape (rows, $D_v$), and
# $m$, $\ell$ and $a$ with a number for each row:
#
# $$ \begin{aligned} m_\text{new} &= \max(m, \textstyle\max_j S_j) \\ P &= e^{S - m_\text{new}} & a &= e^{m - m_\text{new}} \\ \ell &\leftarrow a\,\ell + \textstyle\sum_j P_j & O &\leftarrow a\,O + P\,V & m &\leftarrow m_\text{new} \\ \text{and after the last tile} \quad o &= O / \ell \end{aligned} \tag{4} $$
#
# Why fuss about a division? The tensor cores of an H100 multiply matrices about 15 times as fast as the rest of it computes
# anything else. <!-- source: H100 SXM data sheet, 989 TFLOP/s dense bf16 against 67 TFLOP/s fp32 --> What is not part of a
# product is expensive. The library has both forms, and a meter counts what each of them does:

# %% tags=["claim"]
generator = torch.Generator().manual_seed(0)
q, k, v = (torch.randn(1, 1, 1024, 64, generator=generator) for _ in range(3))  # (B, H, T, D)
print("keys a tile   in products   others, by (3)   others, by (4)   saved   exponentials")
for block_k in (32, 128):
    with work() as normalised:
        tiled.tiled_attention(q, k, v, block_k=block_k, deferred=False)
    with work() as deferred:
        tiled.tiled_attention(q, k, v, block_k=block_k, deferred=True)
    saved = 1 - deferred.other_flops / normalised.other_flops
    print(f"{block_k:11} {deferred.matmul_flops:13,} {normalised.other_flops:16,} {deferred.other_flops:16,}"
          f" {saved:7.0%} {deferred.exponentials:14,}")  # fmt: skip

# %% [markdown]
# The products are the same. What (4) saves is, first of all, a division of each of the $T^2$ weights, $P / \ell_\text{new}$:
# $1024^2$ is about a million. FlashAttention-2 made that change. The table shows another lever, too: $O$ is rescaled once for
# every tile of keys, so longer tiles of keys rescale less often.
#
# A tenth of these others, is that worth the trouble? With tiles of 32 keys there are 9.8 million of them by (3),
# which at a 15th of the speed take as long as 147 million FLOP in products would: more than half as long as all the
# products. The tenth that (4) saves is worth 6% of the products' time. <!-- source: the table above, 9.8 million · 15
# against 268 million; (9,799,680 − 8,685,568) · 15 / 268,435,456 = 6.2% -->
#
# What remains is hard to get rid of. Each score needs an exponential, and those come from a unit that an H100 has even less of:
# 3.9 TFLOP/s. At $D = 64$, the two products are $4D = 256$ FLOP a score, and the tensor cores do them in the time of a single
# exponential. <!-- source: FlashAttention-3, https://arxiv.org/abs/2407.08608, section 3.1: 989 against 3.9 TFLOP/s; 989 / 3.9 = 254 -->
# That is the thread that lesson 06 takes up.
#
# ## A machine with two memories
#
# PyTorch does not show what is on the chip. So here is a machine that does. The tensors that it is given live in **HBM**, and
# to compute with one you load a tile of it. Whatever you compute is on the **chip**, for as long as you hold it, and the
# chip is small. A GPU works on many parts of a task at once. Each part is a *program* with a chip of its own; an H100's has
# 227 KiB. <!-- source: CUDA C++ programming guide, compute capability 9.0, shared memory of a thread block -->

# %% tags=["claim"]
with HBM(sram=H100_SRAM, q=q, k=k) as hbm:
    scores = hbm.empty((64, 128), name="scores")  # a new tensor in HBM
    tile = hbm.load(q[0, 0, :64]) @ hbm.load(k[0, 0, :128]).T  # (64, 64) times (64, 128)
    hbm.store(scores, tile)
print("loaded:", dict(hbm.loaded), " stored:", dict(hbm.stored), " at most on the chip:", hbm.sram_peak, "bytes")

# %% [markdown]
# Three laws hold inside the block: compute only with what you loaded; what is alive has to fit; what was never stored is
# NaN. Break them (the third raises nothing: it shows):

# %% tags=["claim"]
def not_loaded(hbm):
    return q + 1


def too_large(hbm):
    return hbm.load(q)


def not_written(hbm):
    return hbm.load(hbm.empty((2,), name="new"))


for crime in (not_loaded, too_large, not_written):
    try:
        with HBM(sram=H100_SRAM, q=q, k=k) as hbm:
            print(f"{crime.__name__}: {crime(hbm)}")
    except RuntimeError as error:
        print(f"{crime.__name__}: {type(error).__name__}: {error}")

# %% [markdown]
# **What is born on the chip costs nothing.** `torch.zeros`, `torch.full`, `torch.arange`, `q.new_zeros(…)`: a tensor that you
# make inside the block is on the chip at once, without a transfer, and takes its room there. So that is how a state begins. Only
# what has to outlive the block, as $o$ does, is made with `hbm.empty`, and stored.
#
# **Without a machine.** A function that takes `hbm=DIRECT` by default runs anywhere: `DIRECT` has the same three methods, counts
# nothing and has no limits. Its `load` is a copy, its `store` an assignment, its `empty` a tensor full of NaN. That is how
# your attention will run in a model, where nobody counts.
#
# A tensor may carry many heads side by side, (B, H, T, D). They are computed by as many programs, each with a chip of its own;
# who makes the machine says by how many, `HBM(programs=…)`. You load a tile of *all* heads in one line, `hbm.load(k[:, :, j : j + block_k])`.
#
# ## Exercise (b): tiled attention (50 minutes)
#
# The whole forward pass, with the contract of every attention stage of this course. Two loops: tiles of queries outside,
# tiles of keys inside. A tile of queries is loaded once. Its state $(m, \ell, O)$ stays on the chip until all of its keys have
# gone by; then $o$ and the log-sum-exp $\mathrm{lse} = m + \ln \ell$ are stored, once. Three details make it real:
#
# - **Causal.** The last query is the last token, so query $i$ sees the keys $j \le i + T_k - T_q$. Keys that no query of the
#   tile sees are not even loaded: the last slice ends before them. A query that sees none at all has $o = 0$ and $\mathrm{lse} = -\infty$.
# - **Grouped queries.** $G$ query heads share a key head: query head $h$ reads key head $h // G$. Stack the rows of a group
#   below each other in one tile, $(B, H_{kv}, G \cdot \text{rows}, D_k)$, and one load of $K$ serves them all
#   (rows: those of one head, `block_q` of them or what is left).
#   `x.unflatten(1, (Hkv, G))` and `x.flatten(2, 3)` do that; the first one is a view, also of a tensor in HBM. In the stack, all
#   the rows of the first head come first, then all those of the second: keep that in mind where a row is compared with its keys.
# - **Ragged ends.** A slice that reaches beyond the end is simply shorter.

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
    hbm                  hbm.load(view) → a copy on the chip; hbm.store(view, value); hbm.empty(shape, device=q.device, name="o") → in HBM;
                         DIRECT has the same methods, and counts nothing

    Returns o (B, Hq, Tq, Dv), and with return_lse also lse (B, Hq, Tq) = m + ln l, both made with hbm.empty and stored
    once, lse whether or not it is returned. A query that sees no key: o = 0, lse = −∞. k and v are loaded once per query tile, as far as it sees them.
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

# %% tags=["check"] exercise="03.tiled_attention"
check("03.tiled_attention", tiled_attention)

# %% [markdown]
# ## Watch it
#
# Every step below is a transfer that the machine recorded while *your* tiled attention ran on it (the library's, until yours has
# passed), with 64 tokens and a head size of 16. The square is the matrix of scores that never exists as a whole. Walk through it once with **queries
# outside**: a tile of $q$ waits on the chip while $K$ and $V$ stream past. Then once with **keys outside**, the order of the first
# FlashAttention: a tile of $K$ and $V$ waits, and every tile of queries visits it, its whole state in the luggage, in and
# out. (You have not written that order: it is the library's run.) Then turn causality on, and look for the tiles that are skipped, masked and full.

# %% tags=["widget"]
viz.tiled_attention.stepper(attention=mine("tiled_attention", default=tiled.tiled_attention))

# %% [markdown]
# ## Exercise (c): bytes as a function of the tile (15 minutes)
#
# How many bytes is that? Take one head, all of $q$, $k$, $v$ and $o$ of shape $(T, D)$, and queries outside. It is often said that
# FlashAttention transfers every matrix only once. Look at the stepper again: which of them does cross once, and which
# more often? Does the tile of *keys* matter? And causally, how far does a tile of queries read? Derive it on paper, then
# write it down.

# %% tags=["exercise"] exercise="03.tiled_bytes"
def tiled_bytes(T, D, block_q, *, itemsize=4, causal=False):
    """Bytes that tiled attention moves between HBM and the chip for one head, with the query tiles outside.

    T, D       q, k, v and o are all (T, D), with `itemsize` bytes an element; lse is (T,) in fp32, 4 bytes each
    block_q    queries a tile; k and v are loaded for each tile of queries, with causal only as far as it sees them

    Returns an int.
    """
    ### BEGIN SOLUTION
    total = 2 * T * D * itemsize + 4 * T
    for start in range(0, T, block_q):
        seen = min(start + block_q, T) if causal else T
        total += 2 * seen * D * itemsize
    return total
    ### END SOLUTION

# %% tags=["check"] exercise="03.tiled_bytes"
check("03.tiled_bytes", tiled_bytes)

# %% [markdown]
# With $e$ bytes an element and $B_q$ queries a tile, that is, not causal,
#
# $$ \text{bytes} = \underbrace{2\,T D\, e + 4\,T}_{q,\ o \text{ and lse, once}} + \left\lceil \frac{T}{B_q} \right\rceil \cdot \underbrace{2\,T D\, e}_{K \text{ and } V} \tag{5} $$
#
# Does it hold? Predict with your formula, run your attention on the machine, compare:

# %% tags=["claim"]
def library_formula(T, D, block_q, *, causal=False):
    return library_bytes(T, T, D, D, block_q=block_q, causal=causal)


predict_bytes = mine("tiled_bytes", default=library_formula)
attention = mine("tiled_attention", default=tiled.tiled_attention)
predicted, moved = {}, {}
for block_q in (16, 32, 64, 128, 256, 512, 1024):
    predicted[block_q] = predict_bytes(1024, 64, block_q)
    with HBM(sram=None, q=q, k=k, v=v) as hbm:
        attention(q, k, v, block_q=block_q, block_k=64, hbm=hbm)
    moved[block_q] = hbm.bytes
    print(f"{block_q:5} queries a tile: predicted {predicted[block_q]:>10,} B, moved {moved[block_q]:>10,} B")
with HBM(sram=None, q=q, k=k, v=v) as hbm:
    attention(q, k, v, causal=True, block_q=64, block_k=64, hbm=hbm)
by_formula = predict_bytes(1024, 64, 64, causal=True)
print(f"   64, and causal:     predicted {by_formula:>10,} B, moved {hbm.bytes:>10,} B")
naive = naive_cost(1, 1, 1024, 64, itemsize=4).hbm_bytes
print(f"naive attention moves {naive:,} B: {naive / moved[64]:.2f}× as much as tiles of 64 queries")

# %% tags=["measure"]
measured("03.bytes_saved", naive / moved[64], "×")

# %%
viz.tiled_attention.bytes_by_tile(predicted, moved, naive=naive, once=moved[1024])

# %% [markdown]
# Did you guess more than 2.00×? Most people do. $S$ and $P$ cost naive attention $4\,T^2$ elements; by (5), $K$ and $V$ cost
# tiled attention $2\,T^2 D / B_q$. The quotient is about $2 B_q / D$ (without $q$ and $o$, once each): **$T$ drops out**, and what decides is the tile of queries
# against the head size. Tiles of 32 only just break even, tiles of 16 *lose*.
#
# So the queries' tile should be as large as the chip allows. It holds $q$ and $O$, $2 B_q D$ elements, and with room for
# $M$ elements $B_q$ can be about $M / 2D$: the bytes fall as $T^2 D^2 / M$. That is the theorem in the FlashAttention
# paper, which also shows that no exact attention does better over all sizes of
# $M$ ([Dao et al., 2022](https://arxiv.org/abs/2205.14135), theorem 2 and proposition 3). On a real GPU it
# looks better still: there is a cache between the two memories, and when one program has fetched a tile of $K$ and $V$, its
# neighbours find it there.
#
# ## Which loop outside?
#
# With the keys outside, $K$ and $V$ do cross only once. Is that not better? Say by how much, for tiles of 64 × 64: **the bytes with
# keys outside, over those with queries outside.** (The stepper shows what else has to travel.)

# %% tags=["predict"]
predict("03.keys_outside", None, "×")

# %% tags=["claim"]
total = {}
for order in ("query", "key"):
    with HBM(sram=None, q=q, k=k, v=v) as hbm:
        tiled.tiled_attention(q, k, v, order=order, hbm=hbm)
    total[order] = hbm.bytes
    print(f"{order} tiles outside: {hbm.bytes:,} B")
    for name in ("q", "k", "v", "o", "m", "l", "lse"):
        loaded, stored = hbm.loaded[name] / q.nbytes, hbm.stored[name] / q.nbytes
        print(f"    {name:3} loaded {loaded:6.2f}, stored {stored:6.2f} times the size of q")

# %% tags=["measure"]
measured("03.keys_outside", total["key"] / total["query"], "×")

# %% [markdown]
# Each time that a tile streams past, queries outside move two tensors, $K$ and $V$. Keys outside move three: $q$ in, $O$ in, and
# $O$ out again (the first visit has no $O$ to bring in), with $m$ and $\ell$ on top. And it has a worse flaw, which bytes do not show: the tiles of queries depend on each other, by
# their states in HBM. With queries outside, each tile of queries is finished by one program that needs nobody else, so a GPU
# can run a hundred of them side by side even for a single head. FlashAttention-2 turned the loops around.
#
# ## The byte leaderboard
#
# Now spend a chip well. **Fewest bytes wins**, on a chip of the size printed below. Your tiled attention runs with the tiles
# that you choose; what counts against the chip is everything that is alive at the same time. `P = torch.exp(S - m)` holds
# three tiles of scores, $S$, the difference, and $P$; `S.sub_(m).exp_()` holds one. The library's own is written to be read, and wastes
# plenty. Work in place, `del` what is done with (the last tile's, too, before the next one is loaded), take many queries and few
# keys. `P @ V` makes a third tile of (rows, $D_v$) beside $q$ and $O$; `O.mul_(a).baddbmm_(P, V)`, on three-dimensional tensors,
# adds the product without making it. The machine's complaint lists what was alive when it overflowed.

# %% tags=["claim"]
SRAM = 128 * KIB
five = predict_bytes(1024, 64, 205)
print(f"The chip: {SRAM // KIB} KiB. In five tiles of queries, tiled attention would move {five:,} B.")

# %% [markdown]
# Five tiles can be done. Write a function `frugal` in a cell of your own (the contract is that of exercise (b), for one head and
# never causal), hand it to the board in place of `attention`, which the model below still needs, and choose tiles. Your best is kept. And five tiles are not quite the end: what of the keys that are on the
# chip when one tile of queries ends and the next begins?

# %%
byte_leaderboard(attention, block_q=48, block_k=48, sram=SRAM, T=1024, D=64)

# %% [markdown]
# ## Measure: time and memory
#
# Bytes are a means. The ends are memory and time. First memory: the largest tensor that each of the two makes for one head, as $T$
# doubles.

# %% tags=["claim"]
for T in (512, 1024, 2048):
    inputs = [torch.zeros(1, 1, T, 64) for _ in range(3)]
    with largest_allocation() as by_naive:
        naive_attention(*inputs)
    with largest_allocation() as by_tiles:
        attention(*inputs, block_q=128, block_k=128)
    for name, largest in (("naive", by_naive), ("tiled", by_tiles)):
        print(f"T = {T:4}, {name}: {largest.bytes:>10,} B, of shape {largest.shape}")

# %% [markdown]
# Four times as much against twice as much; and what the tiles' largest is, $o$ itself, nobody can save. Now time, on this machine: naive
# attention, your tiles, and torch's own fused kernel, `sdpa`. How many times as long as `sdpa` will your tiled attention take at 1024
# tokens? (All do the same products. Your inner loop runs about a dozen operations of torch for each pair of tiles of 128, and each
# of them goes over a tile or a state; `sdpa` takes it all in one go.)

# %% tags=["predict"]
predict("03.tiled_against_sdpa", None, "×")

# %% tags=["measure"]
stages = {
    "naive": naive_attention,
    "tiled": lambda q, k, v: attention(q, k, v, block_q=128, block_k=128),
    "sdpa": STAGES["sdpa"],
}
here = []
for T in (256, 512, 1024, 2048):
    inputs = [tuple(torch.randn(1, 2, T, 64) for _ in range(3)) for _ in range(2)]
    times = interleaved(stages, inputs, repeats=5)
    here += [{"name": name, "sweep": "growth", "T": T, "ms": time.median * 1e3} for name, time in times.items()]
at_1024 = {row["name"]: row["ms"] for row in here if row["T"] == 1024}
measured("03.tiled_against_sdpa", at_1024["tiled"] / at_1024["sdpa"], "×")

# %% tags=["measure"]
viz.charts.attention_growth(recorded("attention"), here=here, names=("naive", "tiled", "sdpa"))

# %% [markdown]
# On a CPU the caches keep a tile close by, so that your tiles lose less than one might fear, and for long $T$ may pass naive
# attention. What is left against `sdpa` is the loop in Python and one pass over the tile for each operation. On a GPU it is worse.
#
# The recorded panels are an H100: one sequence, 16 heads of 64, `bfloat16`, from 1k to 64k tokens. Naive attention's extra memory
# grows with $T^2$ until the GPU is full: the cross, "out of memory". (The card's name says 80GB, and torch finds 79.18 GiB on it. At 32k
# tokens the scores, in `float32`, are 16 · 32,768² · 4 bytes, 64 GiB; to scale them asks for as many again, and beside them
# and what else is on the card 13.84 are free. <!-- source: the record's "missing", naive at 32,768 tokens -->) That of the tiles stays where it is. But their *time* is the worst of all! In
# PyTorch, each step of (4) is a kernel of its own that reads its operands from HBM and writes its result back; the tile that we
# imagined on the chip never stays there. It is the right algorithm in the wrong language. `sdpa` is the same algorithm in a single kernel.
# How far is naive attention from that?

# %% tags=["claim"]
rows = [row for row in recorded("attention").rows if row["sweep"] == "growth"]
ms = {(row["name"], row["T"]): row["ms"] for row in rows}
for T in sorted({T for name, T in ms if name == "naive"}):
    print(f"T = {T:6,}: naive attention takes {ms['naive', T] / ms['sdpa', T]:4.1f} times as long as sdpa on the H100")

# %% [markdown]
# Between 14.5 and 24.8 times. That is against naive attention; against our tiles in PyTorch it would be more. A speed-up
# says little until one knows what it is compared with. Lesson 04 writes that kernel.
#
# ## Your tiles in a real model
#
# SmolLM2 has 9 query heads and 3 key heads of 64: grouped queries with $G = 3$. With a cache, each step has one query and many keys,
# so the causal alignment matters. The model must say the same, to the letter.

# %% tags=["engine"]
from llmsys.models import generate, load_model

model = load_model()
question = "Why is the sky blue? Answer in one sentence."
yours = generate(model, question, attention=attention, cache=True, max_new_tokens=24)
print(yours.text)

# %% tags=["engine", "claim"]
torchs = generate(model, question, attention="sdpa", max_new_tokens=24)
print("your tiled attention chooses the same tokens as torch's fused attention:", yours.tokens == torchs.tokens)

# %% [markdown]
# (What it says about the sky is its own. A model of this size is fluent before it is right.)
#
# ## What production does differently
#
# - **FlashAttention** ([2022](https://arxiv.org/abs/2205.14135), algorithm 1) has the keys outside and divides in every tile;
#   **FlashAttention-2** ([2023](https://arxiv.org/abs/2307.08691), sections 3.1 and 3.2) has (4), and the queries outside, an order
#   that it credits to Phil Tillet's kernel in Triton. In its code, `compute_attn_1rowblock` in
#   `csrc/flash_attn/src/flash_fwd_kernel.h` is the body of your outer loop, and `Softmax::softmax_rescale_o` in `softmax.h` is
#   (4). It walks the keys from the last tile to the first, so that the masked tiles come first.
# - **Grouped queries** are stacked as yours are when there are few queries: the Hopper version calls it `pack_gqa`. A single token's query
#   would leave a tile almost empty.
# - **PyTorch** comes to such kernels through `torch.nn.functional.scaled_dot_product_attention`. On a CPU it tiles, too:
#   `cpu_flash_attention` in `aten/src/ATen/native/cpu/FlashAttentionKernel.cpp`.
# - The **idea of chunks** is older than the kernel: [Rabe and Staats, 2021](https://arxiv.org/abs/2112.05682), wrote it in JAX, for
#   TPUs, to save memory.
# - The **log-sum-exp** is stored for two reasons. The backward pass computes $P$ anew from it (lesson 05), and results over different
#   keys can be merged with it (lesson 08).
#
# ## Do you have it?
#
# <details><summary><b>1.</b> "FlashAttention transfers every matrix only once." Correct the sentence.</summary>
#
# q and o cross once. k and v cross once per tile of queries: ⌈T / B_q⌉ times. Only if a tile held all of the queries would
# everything cross once.
# </details>
#
# <details><summary><b>2.</b> You double the chip. In which dimension do you let the tiles grow, and what happens to the bytes?</summary>
#
# In the queries'. By (5), the traffic of k and v is inversely proportional to B_q, and B_k does not appear: twice the rows, half of
# that traffic. (Longer tiles of keys have a merit of their own: O is rescaled less often. But they save no bytes.)
# </details>
#
# <details><summary><b>3.</b> Tiled attention computes as many products as naive attention, and more of everything else. Why can it be
# faster?</summary>
#
# Because naive attention does not wait for arithmetic. It waits for S and P, 4·T² elements that cross between memory and chip. To do a
# little more on the chip and to move much less pays as long as memory is what limits.
# </details>
#
# **Next:** lesson 04, the same loop as one Triton kernel.
