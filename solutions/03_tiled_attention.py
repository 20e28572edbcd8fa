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
# **The idea:** the output is a third running sum. It is rescaled together with $\ell$, so queries, keys and values can be
# cut into tiles that fit on the chip, and the $T \times T$ matrix of scores is never written anywhere. This is
# FlashAttention's forward pass.
#
# You will derive it, write it against a machine that counts every byte, predict how many bytes a tile size costs, and let
# SmolLM2 talk through it.

# %% tags=["setup"]
import torch

from llmsys import viz
from llmsys.attention import naive_attention
from llmsys.attention import tiled
from llmsys.attention.cost import naive_cost, tiled_bytes as library_tiled_bytes
from llmsys.bench import interleaved, recorded
from llmsys.course import check, hint, measured, mine, predict
from llmsys.course.leaderboard import byte_leaderboard
from llmsys.hardware.memory import DIRECT, H100_SRAM, HBM, KIB
from llmsys.hardware.meters import work

# %%
viz.tiled_overview()

# %% [markdown]
# ## Predict: how much has to move?
#
# One head of attention: $T = 1024$ tokens, heads of $D = 64$, `float32`. Naive attention writes the scores $S$ to the big
# memory, reads them for the softmax, writes the weights $P$, and reads them again for $P V$.
#
# The chip of the machine below has room for tiles of 64 queries and 64 keys. If nothing but $q$, $k$, $v$ and $o$ crossed
# between memory and chip, **how many times fewer bytes would move?** Write down a factor before you compute one.

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
# keys alone* $o'$: a correct attention output, over fewer keys. It is made of $\ell$ and $m$ as they were then. Now a tile arrives. The
# maximum becomes $m_\text{new}$, and the denominator, by lesson 02,
#
# $$ \ell_\text{new} = \ell\, e^{m - m_\text{new}} + \sum_{j \in \text{tile}} e^{s_j - m_\text{new}} \tag{2} $$
#
# Every weight inside $o'$ has the wrong maximum and the wrong denominator, and all of them *by the same factor*: multiply by $\ell$ to
# undo the old division, by $e^{m - m_\text{new}}$ to change the maximum, divide by $\ell_\text{new}$. Then add what is new:
#
# $$ o'_\text{new} = o' \cdot \frac{\ell\, e^{m - m_\text{new}}}{\ell_\text{new}} + \sum_{j \in \text{tile}} \frac{e^{s_j - m_\text{new}}}{\ell_\text{new}}\, v_j \tag{3} $$
#
# After the last tile, $o'$ is $o$. Each key and each value was read **once**. The last pass has fallen.
#
# ## Exercise (a): one query, streaming keys
#
# Write (2) and (3) for a single query. Start with nothing: $m = -\infty$, $\ell = 0$, $o' = 0$. What you keep between tiles is one
# number, one number and one vector of $D_v$.

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
# (3) divides at every tile, and every time undoes it at the next. Leave $o$ undivided instead, as a plain sum under $m$, and
# divide once at the end. For a tile of queries at once, with $S$ and $P$ of shape (rows, keys):
#
# $$ P = e^{S - m_\text{new}}, \quad a = e^{m - m_\text{new}}, \qquad \ell \leftarrow a\,\ell + \textstyle\sum_j P_j, \qquad O \leftarrow a\,O + P\,V, \qquad \text{at the end } o = O / \ell \tag{4} $$
#
# Why care about a division? A tensor core multiplies matrices about 15 times as fast as the rest of an H100 can do anything
# else. <!-- source: H100 SXM data sheet, 989 TFLOP/s dense bf16 against 67 TFLOP/s fp32 --> Every operation outside of the two
# products is an expensive one. The library has both forms; a meter counts.

# %% tags=["claim"]
generator = torch.Generator().manual_seed(0)
q, k, v = (torch.randn(1, 1, 1024, 64, generator=generator) for _ in range(3))
for name, deferred in (("normalised at every tile (3)", False), ("divided at the end (4)", True)):
    with work() as done:
        tiled.tiled_attention(q, k, v, deferred=deferred)
    print(f"{name:29} {done.matmul_flops:,} FLOP in products, {done.other_flops:,} others, {done.exponentials:,} of them exp")

# %% [markdown]
# The products are the same. Of the rest, (4) saves one in seven here, and it saves more the smaller the tiles are. FlashAttention-2 made
# that change ([section 3.1](https://arxiv.org/abs/2307.08691)).
#
# ## A machine with two memories
#
# In PyTorch you cannot see what is on the chip. So here is a machine where you can. Tensors that it is given live in **HBM**,
# and to compute with one you must load a tile of it. Whatever you compute is on the **chip**, for as long as you hold it, and the
# chip is small. A GPU has one such chip for each program that runs; an H100 gives a program 227 KiB. <!-- source: CUDA C++ programming guide, compute capability 9.0 -->

# %% tags=["claim"]
with HBM(sram=H100_SRAM, q=q, k=k) as hbm:
    scores = hbm.empty((64, 128), name="scores")
    tile = hbm.load(q[0, 0, :64]) @ hbm.load(k[0, 0, :128]).T  # (64, 64) times (64, 128)
    hbm.store(scores, tile)
print("loaded:", dict(hbm.loaded), " stored:", dict(hbm.stored), " most on the chip:", hbm.sram_peak, "bytes")

# %% [markdown]
# Three laws hold inside the block. Break each of them once in a cell of your own, and read what the machine says:
#
# - `q + 1` is refused: `q` was not loaded.
# - `hbm.load(q[0, 0, :1000])` does not fit.
# - What `hbm.empty` makes is NaN until you store to it.
#
# A tensor may carry many heads side by side, `(B, H, T, D)`. They are computed by as many programs, each with a chip of its own,
# which is what `HBM(programs=…)` says. So you load a tile of *all* heads in one line, `k[:, :, j : j + block_k]`.
#
# ## Exercise (b): tiled attention
#
# The whole forward pass, with the contract of every attention stage of this course. Two loops: tiles of queries outside, tiles of keys
# inside. A tile of queries is loaded once; its state $(m, \ell, O)$ stays on the chip until all of its keys have gone by; then $o$ and the
# log-sum-exp $\mathrm{lse} = m + \ln \ell$ are stored, once. Three details make it real:
#
# - **Causal.** The last query is the last token, so query $i$ sees the keys $j \le i + T_k - T_q$. Keys that no query of the tile
#   sees are not even loaded. A query that sees none has $o = 0$ and $\mathrm{lse} = -\infty$.
# - **Grouped queries.** $G$ query heads share a key head: head $h$ reads key head $h // G$. Stack the rows of a group below each
#   other in one tile, $(B, H_{kv}, G \cdot \text{rows}, D_k)$, and one load of $K$ serves them all. `x.unflatten(1, (Hkv, G))` and
#   `x.flatten(2, 3)` do that; the first one is a view, also on a tensor in HBM.
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

# %% tags=["check"] exercise="03.tiled_attention"
check("03.tiled_attention", tiled_attention)

# %% [markdown]
# ## Watch it
#
# Every step below is a transfer that the machine recorded while the library's tiled attention ran on it: 64 tokens, a head of 16. The
# square is the matrix of scores that never exists as a whole. Compare the two orders. With **queries outside** (FlashAttention-2), $K$ and $V$
# stream past a waiting tile of $q$. With **keys outside** (the first FlashAttention), a tile of $K$ and $V$ waits, and every query tile
# visits it, with its whole state in the luggage, in and out. Then turn causality on.

# %% tags=["widget"]
viz.tile_walker()

# %% [markdown]
# ## Exercise (c): bytes as a function of the tile
#
# $q$ and $o$ cross once. It is often said that $K$ and $V$ do, too. They do not: they cross once **for each tile of queries**,
#
# $$ \text{bytes} = \underbrace{2\,T D\, e + 4\,T}_{q,\ o,\ \mathrm{lse}} + \left\lceil \frac{T}{B_q} \right\rceil \cdot \underbrace{2\,T D\, e}_{k,\ v} \tag{5} $$
#
# with $e$ bytes an element and $B_q$ queries a tile. The tile of *keys* does not appear: it only has to fit. Causally, a tile of queries
# loads the keys up to its last query and no more. Write both.

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
# Does it hold? Predict with (5), run on the machine, compare:

# %% tags=["claim"]
predict_bytes = mine("tiled_bytes", default=lambda T, D, block_q: library_tiled_bytes(T, T, D, D, block_q=block_q))
attention = mine("tiled_attention", default=tiled.tiled_attention)
predicted, moved = {}, {}
for block_q in (16, 32, 64, 128, 256, 512, 1024):
    predicted[block_q] = predict_bytes(1024, 64, block_q)
    with HBM(sram=None, q=q, k=k, v=v) as hbm:
        attention(q, k, v, block_q=block_q, block_k=64, hbm=hbm, return_lse=True)
    moved[block_q] = hbm.bytes
    print(f"{block_q:5} queries a tile: predicted {predicted[block_q]:>10,} B, moved {moved[block_q]:>10,} B")
naive = naive_cost(1, 1, 1024, 64, itemsize=4).hbm_bytes
print(f"naive attention moves {naive:,} B: {naive / moved[64]:.2f} × as much as tiles of 64 queries")

# %% tags=["measure"]
measured("03.bytes_saved", naive / moved[64], "×")

# %%
viz.bytes_by_tile(predicted, moved, naive=naive, once=moved[1024])

# %% [markdown]
# With tiles of 64 rows you win a factor of 2.00, and with tiles of 16 you *lose*. Compare the large terms: $S$ and $P$ cost $4\,T^2$ elements, $K$ and $V$ cost
# $2\,T^2 D / B_q$. So it is the *tile of queries against the head size* that decides, $2 B_q / D$, and not $T$. In 16 bits a tile of the same size holds
# twice the rows, which is one reason why real kernels do better than this one. The other thing that you save is the *memory* for $S$ and $P$, and that does grow with $T^2$.
#
# ## The byte leaderboard
#
# A chip as large as the board says, 1024 tokens, one head of 64, `float32`, not causal. **Fewest bytes wins.** Your tiled attention runs with tiles that you choose. What
# counts against the chip is everything that is alive at the same time: `P = torch.exp(S - m)` holds $S$, the difference and $P$; `S.sub_(m).exp_()` holds one. The
# library's own is written to be read and fits tiles of 56 × 56. Work in place, drop what you no longer need with `del`, take many queries and few keys,
# and beat it by far. Edit the cell, run it again; your best is kept.

# %%
byte_leaderboard(attention, block_q=48, block_k=48)

# %% [markdown]
# ## Measure: time and memory
#
# On your machine, in plain PyTorch, with no chip to spare: naive attention, your tiles, and torch's own fused kernel. How much longer than `sdpa` will your
# tiled attention take at 1024 tokens?

# %% tags=["predict"]
predict("03.tiled_against_sdpa", None, "×")

# %% tags=["measure"]
from llmsys.attention import STAGES

here = []
for T in (256, 512, 1024):
    inputs = [tuple(torch.randn(1, 2, T, 64) for _ in range(3)) for _ in range(2)]
    stages = {
        "naive": naive_attention,
        "tiled": lambda q, k, v: attention(q, k, v, block_q=128, block_k=128),
        "sdpa": STAGES["sdpa"],
    }
    times = interleaved(stages, inputs, repeats=5)
    here += [{"name": name, "sweep": "growth", "T": T, "ms": t.median * 1e3} for name, t in times.items()]
at_1024 = {row["name"]: row["ms"] for row in here if row["T"] == 1024}
measured("03.tiled_against_sdpa", at_1024["tiled"] / at_1024["sdpa"], "×")

# %% tags=["measure"]
viz.attention_growth(recorded("attention"), here=here)

# %% [markdown]
# Look at the right scale of things. The recorded panels are an H100: one sequence, 16 heads of 64, `bfloat16`, from 1k to 64k tokens. Naive attention takes extra memory
# that grows with $T^2$ and stops when the GPU is full. The tiled form takes what a few tiles take, but in PyTorch each of its steps is a dozen
# separate kernels that write to HBM after all: it *is* the right algorithm, in the wrong language. `sdpa` is the same algorithm as one kernel. Lesson 04
# writes that kernel.
#
# ## Your tiles in a real model
#
# SmolLM2 has 9 query heads and 3 key heads of 64: grouped queries with $G = 3$. With a cache, each step has one query and many keys, so the causal
# alignment matters. The model must say the same, to the letter.

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
# ## What production does differently
#
# - **FlashAttention** ([2022](https://arxiv.org/abs/2205.14135), algorithm 1) had the keys outside; **FlashAttention-2** ([2023](https://arxiv.org/abs/2307.08691)) put the
#   queries outside, so that tiles of queries are independent programs and no state travels. In its code, `compute_attn_1rowblock` in `csrc/flash_attn/src/flash_fwd_kernel.h` is
#   your outer loop's body, and `Softmax::softmax_rescale_o` is (4).
# - **Grouped queries** are stacked just as here for decoding: FlashAttention calls it `pack_gqa`, since a single token's query would leave a tile almost empty.
# - **PyTorch** reaches these kernels through `torch.nn.functional.scaled_dot_product_attention`; on a CPU it tiles too, in `aten/src/ATen/native/cpu/FlashAttentionKernel.cpp`.
# - **Other accelerators** have the same loop under other names: the chunked attention of [Rabe and Staats](https://arxiv.org/abs/2112.05682) was written for TPUs.
# - The **log-sum-exp** is stored because the backward pass recomputes $P$ from it (lesson 05), and because results over different keys can be merged with it (lesson 08).
#
# ## Do you have it?
#
# <details><summary><b>1.</b> "FlashAttention transfers every matrix only once." Correct the sentence.</summary>
#
# q and o cross once. k and v cross once per tile of queries: ⌈T / B_q⌉ times. Only if a tile could hold all the queries would everything cross once.
# </details>
#
# <details><summary><b>2.</b> You double the chip. In which dimension do you let the tiles grow, and what happens to the bytes?</summary>
#
# Let the query tile grow: by (5) the traffic of k and v is inversely proportional to B_q, and B_k does not appear at all. With twice the rows, half of that traffic.
# </details>
#
# <details><summary><b>3.</b> Tiled attention computes as many products as naive attention, and more of everything else. Why can it be faster?</summary>
#
# Because naive attention does not wait for arithmetic. It waits for S and P, 4·T² elements that cross between memory and chip. Doing a little more on the chip to move much less pays
# as long as memory is what limits.
# </details>
#
# **Next:** lesson 04, the same loop as one Triton kernel.
