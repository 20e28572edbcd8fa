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
# # 01 · The memory wall
#
# Attention is two matrix products with a softmax between them. GPUs are made for matrix products. And yet attention,
# written down like that, leaves most of the chip idle. At its best, as the picture below counts it, an H100 works for a
# fifth of the time and waits for the rest. As PyTorch really runs it, it reaches two percent of the chip's speed. And a
# long sequence it cannot do at all: the memory is full.
#
# **The idea:** a chip computes faster than it is fed. Count what an algorithm *computes* and what it *moves*, divide each
# by what the machine can do, and the longer of the two times is the one you get. For attention, it is the moving.
#
# You will count attention's operations and bytes, write attention itself, put both on a machine's roofline, predict the
# memory that it takes and where a GPU runs into the wall, and see what was measured. Then SmolLM2, a real language model, talks through your
# code.

# %% tags=["setup"]
import math

import torch

from llmsys import viz
from llmsys.attention import cost, naive, sdpa_attention
from llmsys.bench import interleaved, recorded
from llmsys.course import check, hint, measured, mine, predict
from llmsys.hardware import roofline
from llmsys.hardware.devices import DEVICES, this_machine
from llmsys.hardware.memory import HBM
from llmsys.hardware.meters import work

# %%
viz.memory_wall.overview()

# %% [markdown]
# ## Predict: how large, and how slow?
#
# Take a model of ordinary size in training. A batch of $B = 1024$ sequences, $T = 4096$ tokens each, $H = 32$ heads of
# $D = 128$, so that the model's width $C = H \cdot D$ is 4096. In **one layer**, every head of every sequence computes a
# score for every pair of tokens.
#
# **How many TiB are these scores** in `bfloat16`, two bytes each? (1 TiB is $2^{40}$ bytes. An H100 has 80 GiB.) <!--
# source: NVIDIA H100 data sheet -->

# %% tags=["predict"]
predict("01.score_bytes", None, "TiB")

# %% [markdown]
# The picture shows one of these heads. An H100 computes $989.5 \cdot 10^{12}$ operations a second in `bfloat16` and moves
# $3.35 \cdot 10^{12}$ bytes between its memory and the chip. <!-- source: NVIDIA H100 SXM data sheet, dense --> At these
# rates the traffic takes nearly five times as long as the arithmetic. Now cut the same width into twice as many heads,
# half as large: 64 heads of 64. **How many times as long as its arithmetic does attention's traffic take then?**

# %% tags=["predict"]
predict("01.smaller_heads", None, "×")

# %% [markdown]
# ## The idea: what is computed, what is moved
#
# One head has queries $q$, keys $k$ and values $v$, each of shape $(T, D)$. Its output $o$, $(T, D)$, is made in three
# steps (all letters are in the course's [notation table](notation.md), with those that other texts use):
#
# $$ S = \frac{q\,k^\top}{\sqrt{D}} \;\; (T, T) \qquad P = \operatorname{softmax}(S) \;\; (T, T) \qquad o = P\,v \;\; (T, D) \tag{1} $$
#
# Row $i$ of $S$ says how well query $i$ matches each key. The softmax makes weights of it, positive numbers that sum to
# one. Row $i$ of $o$ is the average of the values under these weights. Why the $\sqrt{D}$? Take two vectors of $D$
# independent random numbers of mean 0 and variance 1. Their dot product has a standard deviation of $\sqrt{D}$; divided by
# it, the scores stay of order 1 whatever the head size is, and the softmax does not collapse onto a single key.
#
# **Computed.** To multiply a matrix of $(m, k)$ by one of $(k, n)$ takes $m \cdot n$ dot products of length $k$, and each of
# their steps is a multiplication and an addition:
#
# $$ \text{FLOP} = 2 \cdot m \cdot k \cdot n \tag{2} $$
#
# **Moved.** A chip computes on what is right beside its arithmetic, in memory that is small and fast; here called SRAM. On
# an H100 the arithmetic is in 132 **multiprocessors**, and each has 256 KiB of SRAM to itself. <!-- source: NVIDIA H100
# architecture white paper: combined shared memory and L1 cache --> Everything else is in a memory a thousand times as large,
# outside of the chip: HBM on a GPU, DRAM on a laptop. (The caches on the way count from the end of this lesson on; until
# then, we do as if there were none.) A **kernel** is a program that the chip runs on its own: it reads its operands from
# that memory and writes its result back, where the next kernel finds it; what was in SRAM is gone. PyTorch runs the three
# steps of (1) as three kernels (and a fourth for the scale, which we come back to), so $S$ and $P$ make the way out *and*
# the way back.
#
# ## A first version
#
# Here is (1) for tensors of shape $(B, H, T, D)$. (`k.mT` transposes the last two dimensions, and `@` multiplies all the
# $B \cdot H$ matrices at once.) Look at the shapes:

# %% tags=["claim"]
def first_version(q, k, v):
    S = q @ k.mT / math.sqrt(q.shape[-1])
    P = torch.softmax(S, dim=-1)
    return P @ v


generator = torch.Generator().manual_seed(0)
q, k, v = (torch.randn(2, 4, 256, 64, generator=generator).bfloat16() for _ in range(3))
S = q @ k.mT
print(f"q, k, v {tuple(q.shape)}: {q.numel():,} elements each.  S {tuple(S.shape)}: {S.numel():,}")
print(f"o {tuple(first_version(q, k, v).shape)}")

# %% [markdown]
# With 256 tokens, $S$ is already four times as large as $q$. Twice the tokens, and it is eight times as large as $q$.
#
# ## Exercise (a): count (15 minutes)
#
# Count one forward pass of (1), for $B$ sequences with $H$ heads of $T$ tokens and head size $D$, no mask. Four numbers:
#
# 1. the **operations** of the two products by (2). The softmax is a few per score where a product has hundreds; leave it
#    out, and the scale with it;
# 2. the **elements of $S$**, of all heads and sequences together;
# 3. the **bytes that cross** between memory and chip in three kernels: $q\,k^\top$, softmax, $P\,v$. Each reads its
#    operands once and writes its result once;
# 4. the bytes that **autograd keeps** for the backward pass, beside $q$, $k$ and $v$, which are there anyway. It needs
#    the gradients of both factors of $P v$, so it keeps $P$. Does it also need $S$? A row of $P$ with gradient $dP$ gives
#    $dS_i = P_i \, (dP_i - \sum_j P_j \, dP_j)$. Is there an $S$ in that?

# %% tags=["exercise"] exercise="01.naive_cost"
def naive_cost(B, H, T, D, *, itemsize=2):
    """What naive attention costs, forward, without a mask: q, k, v and o are (B, H, T, D), S and P (B, H, T, T).

    B, H, T, D    ints: sequences, heads, tokens, head size
    itemsize      bytes of an element: 2 in bf16, 4 in fp32

    Returns (flops, score_elements, hbm_bytes, saved_bytes), four ints: the operations of the two products, the elements
    of S, the bytes that three kernels read and write, and the bytes that autograd keeps beside q, k and v.
    """
    ### BEGIN SOLUTION
    scores = B * H * T * T
    rows = B * H * T * D  # elements of q, and of k, v and o
    flops = 2 * scores * D + 2 * scores * D  # q kᵀ and P v
    crossing = (2 * rows + scores) + 2 * scores + (scores + 2 * rows)  # q kᵀ, softmax, P v
    return flops, scores, itemsize * crossing, itemsize * scores
    ### END SOLUTION


# %% tags=["check"] exercise="01.naive_cost"
check("01.naive_cost", naive_cost)

# %% [markdown]
# Stuck? `hint("01.naive_cost")` in a cell of your own gives the next of three hints: a nudge, the invariant, then
# pseudocode.
#
# ### Is that what PyTorch does?
#
# A count is a claim. The library has a meter, `work()`, that watches every operation of torch and adds up what it
# computes, reads and writes. And autograd can be asked what it keeps: it hands each tensor that it saves to a hook.
# (`mine` fetches your answer once it has passed, and the library's own until then.)

# %% tags=["claim"]
counted = mine("naive_cost", default=cost.naive_cost)


def kept_by_autograd(attention, *inputs):
    """Bytes of the tensors that autograd saves in a call of `attention`, beside the inputs."""
    kept = {}

    def remember(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    inputs = [x.detach().requires_grad_() for x in inputs]
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda x: x):
        o = attention(*inputs)  # noqa: F841  (as long as o lives, so does what is kept for it)
    for x in inputs:
        kept.pop(x.untyped_storage().data_ptr(), None)
    return sum(kept.values())


flops, scores, hbm_bytes, saved_bytes = counted(2, 4, 256, 64)
scaled = q / math.sqrt(64)
with work() as done:
    P = torch.softmax(scaled @ k.mT, dim=-1)
    o = P @ v
print(f"operations of the products   counted {flops:,}, metered {done.matmul_flops:,}")
print(f"bytes read and written       counted {hbm_bytes:,}, metered {done.bytes:,}")
print(f"bytes kept for backward      counted {saved_bytes:,}, found {kept_by_autograd(first_version, q, k, v):,}")

with work() as done:
    first_version(q, k, v)
print(f"\nfirst_version, which scales S and not q, moves {done.bytes:,} bytes")

# %% [markdown]
# To the byte, for the three kernels; `scaled` was made before the meter ran. The last line is a warning: dividing $S$ by
# $\sqrt{D}$ is a kernel of its own, and it reads all of $S$ and writes all of $S$. Dividing $q$ instead costs next to
# nothing. In this business the cheap operations are the expensive ones.
#
# Now the example. One layer, forward:

# %% tags=["claim"]
flops, scores, hbm_bytes, saved_bytes = counted(1024, 32, 4096, 128)
print(f"operations           2^{math.log2(flops):g}")
print(f"elements of S        2^{math.log2(scores):g}, in units of 2^30: {scores / 2**30:g}")
print(f"S in bf16            {2 * scores / 2**40:g} TiB")
print(f"bytes that cross     {hbm_bytes / 2**40:.3f} TiB")
print(f"kept for backward    {saved_bytes / 2**40:g} TiB")

# %% tags=["measure"]
measured("01.score_bytes", 2 * scores / 2**40, "TiB")

# %% [markdown]
# $B\,T^2 H = 2^{39}$ scores and $4\,B\,T^2 C = 2^{48}$ operations. (Mind the units: $2^{39}$ is 512 times $2^{30}$, but
# these are *elements*, and not bytes. In `bfloat16` they make 1 TiB.) Another tebibyte, $P$, has to stay until the
# backward pass comes by, in **each layer**. $q$, $k$, $v$ and $o$ together are an eighth of $S$.
#
# Nobody trains a batch like that on one GPU. But divide $B$ by a thousand, and it is a gibibyte a layer for a *single*
# sequence, for a matrix that nobody asked for: what we want is $o$.
#
# ## Exercise (b): naive attention (30 minutes)
#
# Now write attention, with what a real model needs. Three things come on top of (1):
#
# - **Causal mask.** A language model predicts the next token, so a query may see its own token and those before it, no
#   later one. A score that must not count becomes $-\infty$ *before* the softmax, for $e^{-\infty} = 0$. A model that keeps
#   the keys of earlier tokens, in a **cache**, has fewer queries than keys, $T_q < T_k$: the queries are the **end** of the
#   sequence. So query $i$ sees key $j$, both counted from 0, if
#   $$ j \le i + T_k - T_q \tag{3} $$
#   (`is_causal` of torch's own function is aligned at the *beginning* instead. A single new token would then see only the
#   very first key.) With $T_q > T_k$, the first queries see no key at all. Their output is 0.
# - **Grouped queries.** Keys and values of many models have fewer heads than the queries: $H_q = G \cdot H_{kv}$. Query
#   head $h$ reads key head $\lfloor h / G \rfloor$, so that the $G$ neighbours of a group share one. SmolLM2 has 9 query
#   heads and 3 key heads.
# - **The log-sum-exp.** On request, return also $\mathrm{lse}_i = \ln \sum_j e^{S_{ij}}$, the logarithm of the softmax's
#   denominator. It looks like a by-product; lessons 02 to 05 live on it. A query that sees no key has
#   $\mathrm{lse} = -\infty$.
#
# All attention functions of this course have these arguments, and so yours will fit wherever the library's do.

# %% tags=["exercise"] exercise="01.naive_attention"
import math

import torch


def naive_attention(q, k, v, *, causal=False, scale=None, return_lse=False):
    """Attention that stores the whole score matrix.

    q (B, Hq, Tq, Dk)   k (B, Hkv, Tk, Dk)   v (B, Hkv, Tk, Dv)    Hq is a multiple of Hkv, and Tk at least 1
    causal              query i sees key j only if j <= i + Tk - Tq
    scale               the scores are q kᵀ · scale; None stands for 1/√Dk

    Returns o (B, Hq, Tq, Dv), of v's dtype; with return_lse=True the pair of o and lse (B, Hq, Tq), float32. A query that
    sees no key has o = 0 and lse = -inf. In 16 bits, take softmax and log-sum-exp in float32.
    Not allowed: torch's scaled_dot_product_attention. (torch.softmax and torch.logsumexp are yours to use.)
    """
    ### BEGIN SOLUTION
    Hq, Tq, Dk = q.shape[1:]
    Hkv, Tk = k.shape[1:3]
    scale = 1 / math.sqrt(Dk) if scale is None else scale
    k, v = (x.repeat_interleave(Hq // Hkv, dim=1) for x in (k, v))  # (B, Hq, Tk, ·): each head G times in a row
    s = (q @ k.mT).float() * scale  # (B, Hq, Tq, Tk)
    if causal:
        query = torch.arange(Tq, device=q.device)[:, None] + Tk - Tq  # (Tq, 1): the place of each among the keys
        s = s.masked_fill(torch.arange(Tk, device=q.device) > query, -math.inf)
    p = torch.softmax(s, dim=-1)
    if causal:
        p = p.masked_fill(query < 0, 0)  # a row that sees no key was 0/0
    o = p.to(v.dtype) @ v
    return (o, torch.logsumexp(s, dim=-1)) if return_lse else o
    ### END SOLUTION


# %% tags=["check"] exercise="01.naive_attention"
check("01.naive_attention", naive_attention)

# %% [markdown]
# Correct, general, and a dozen lines. What do they move? Every line that makes something of the size of $S$ is a kernel
# that reads such a thing and writes such a thing. In bytes for each score, in `bfloat16`, where the three kernels of
# exercise (a) need 8:

# %% tags=["claim"]
attention = mine("naive_attention", default=naive.naive_attention)
q, k, v = (torch.randn(1, 4, 512, 64, generator=generator).bfloat16() for _ in range(3))
small = 4 * q.nbytes  # q, k, v and o, once each
for name, function, options in (
    ("first_version", first_version, {}),
    ("the library's", naive.naive_attention, {}),
    ("the library's, causal", naive.naive_attention, {"causal": True}),
    ("yours", attention, {}),
    ("yours, causal", attention, {"causal": True}),
):
    with work() as done:
        function(q, k, v, **options)
    each = (done.bytes - small) / (4 * 512 * 512)
    print(f"{name:24} moves {each:4.1f} bytes a score")

# %% [markdown]
# The library's makes the scores in `float32`, scales them and narrows the weights for the second product: two more passes,
# and scores twice as wide. That is 28 bytes; another 2.0 are $q$ and $k$ in `float32`, which are little beside the scores
# of a longer sequence. Causality spares half of the arithmetic, in principle. In PyTorch it costs: a `masked_fill` of the
# scores and one of the weights move 16 more bytes, the mask itself the rest, and 30.0 become 47.8. Keep the 28 in mind.
# <!-- source: the output above: 30.0 bytes a score; q and k in float32 are written and read once more each:
# 2 · (2 + 4 + 4 − 2) · 64 / 512 = 2.0 -->
#
# ## The roofline
#
# How long must that take? A chip loads the next numbers while it computes on these. So within a kernel, arithmetic and
# traffic overlap, and the slower of the two hides the other:
#
# $$ t = \max\!\left( \frac{\text{FLOP}}{\text{peak}},\; \frac{\text{bytes}}{\text{bandwidth}} \right) \tag{4} $$
#
# Which one is it? Divide both by the bytes. What is left of the kernel is its **intensity**
# $I = \text{FLOP} / \text{bytes}$; of the machine, its **ridge** $R = \text{peak} / \text{bandwidth}$, the operations that
# it can do in the time of a byte. If $I > R$, the kernel is bound by arithmetic. If $I < R$, by memory, and it reaches only
# the fraction $I/R$ of the peak. Plotted over $I$, the speed within reach is a slope and then a flat roof
# ([Williams, Waterman and Patterson, 2009](https://doi.org/10.1145/1498765.1498785)):

# %%
T, D = 4096, 128
three_kernels = [  # of one head; a softmax is five operations an element: maximum, difference, exponential, sum, quotient
    roofline.Operation("q kᵀ", flops=2 * T * T * D, bytes=2 * (2 * T * D + T * T)),
    roofline.Operation("softmax", flops=5 * T * T, bytes=2 * (2 * T * T)),
    roofline.Operation("P v", flops=2 * T * T * D, bytes=2 * (T * T + 2 * T * D)),
]
viz.roofline.chart(three_kernels, DEVICES["H100 SXM"])

# %% [markdown]
# For one head the first and the last kernel do $2T^2D$ operations on about $2\,T^2$ bytes, as long as $T$ is much larger
# than $D$. So their intensity is about $D$, whatever $T$ is: more tokens do not help. The softmax does next to nothing
# for each byte. All three stand on the slope. (A disc's area is its share of the time. The dashed roof is that of
# `float32`: the **tensor cores**, the units that multiply matrices, take narrower numbers only, and `float32` is left to
# units with a fifteenth of their speed.)
#
# ## Exercise (c): the time of a sequence of kernels (15 minutes)
#
# Kernels run one after another, because each needs the result of the one before. Given a list of them, each as its
# operations and its bytes, what is the least time that all take together?

# %% tags=["exercise"] exercise="01.roofline_seconds"
def roofline_seconds(operations, *, peak_flops, bandwidth):
    """The least seconds for kernels that run one after another.

    operations    a list of pairs (FLOP, bytes), one a kernel
    peak_flops    FLOP/s of the machine
    bandwidth     B/s between its memory and its chip

    Returns a float. Within a kernel arithmetic and traffic overlap completely; between two kernels nothing does.
    """
    ### BEGIN SOLUTION
    return sum(max(flops / peak_flops, size / bandwidth) for flops, size in operations)
    ### END SOLUTION


# %% tags=["check"] exercise="01.roofline_seconds"
check("01.roofline_seconds", roofline_seconds)

# %% [markdown]
# Put the example in. For all heads and sequences there are $2^{15}$ times as many operations and bytes as for the one head
# above:

# %% tags=["claim"]
seconds = mine("roofline_seconds", default=roofline.roofline_seconds)
h100 = DEVICES["H100 SXM"]
machine = {"peak_flops": h100.flops["bfloat16"], "bandwidth": h100.bandwidth}
pairs = [(1024 * 32 * op.flops, 1024 * 32 * op.bytes) for op in three_kernels]
for op, pair in zip(three_kernels, pairs, strict=True):
    print(f"{op.name:8} {op.intensity:6.1f} FLOP a byte   {seconds([pair], **machine):.3f} s")
products = [(flops, 0) for flops, _ in (pairs[0], pairs[2])]
print(f"all three {seconds(pairs, **machine):.2f} s; "
      f"the arithmetic of the products alone {seconds(products, **machine):.2f} s")  # fmt: skip
print(f"the ridge of {h100.name}: {h100.flops_per_byte('bfloat16'):.0f} FLOP a byte")

# %% tags=["measure"]
flops, _, hbm_bytes, _ = counted(1024, 64, 4096, 64)
measured("01.smaller_heads", (hbm_bytes / h100.bandwidth) / (flops / h100.flops["bfloat16"]), "×")

# %% [markdown]
# About a second of waiting for a quarter of a second of work. Nearly half of the time goes to the softmax, which computes
# almost nothing. And with smaller heads it is worse: the operations stay, $4\,B\,T^2 C$, but there are twice as many
# matrices $S$ and $P$.
#
# What would one have to change? Not the arithmetic. If *one* kernel did all three steps and kept $S$ and $P$ on the chip,
# only $q$, $k$, $v$ and $o$ would have to cross:

# %%
viz.memory_wall.naive_traffic(T, D)

# %% [markdown]
# Crossing once each, they have $4\,T D$ elements. Against $4\,T^2 D$ operations that is an intensity of $T/2$ in `bfloat16`,
# which grows with the sequence. (It is the most there is: lesson 03 counts how often $k$ and $v$ are read in truth.) That
# kernel is FlashAttention, and lessons 02 to 04 build it.
#
# ## A model on the roofline
#
# Attention is not all of a model. The explorer below places **every** operation of a real model's step on the roofline of
# a real device. Batch and context can be turned up, and the points move. Find out:
#
# - In decoding, one token at a time, *nothing* is near the ridge. Which operations does a larger batch carry over it, and
#   which one stays where it is? Why that one?
# - In prefill, when a model reads the whole prompt at once, compare `naive` attention with `flash`, at a context of 8k. Which points vanish, and
#   where does the new one stand?
# - DeepSeek-V3 caches one short vector for all heads of a token. What does that do to its attention in decoding?
#
# <details><summary>Answers</summary>
#
# - All products with weights. A weight is read once for the whole batch, so their intensity is about the batch itself, and
#   on the H100 they pass the ridge of 295 between 256 and 512 sequences. Attention stays at 4: each sequence has keys and
#   values of its own, and all that is shared is a key head, by four query heads. <!-- source: operations() of
#   Llama-3-8B, 32 query heads and 8 key heads; ridge printed above -->
# - Scores, softmax and weighted sum vanish; with a context of 8k, from about 125, 1.5 (the scale counts there, too) and
#   125. <!-- source: operations() of Llama-3-8B, prefill of 8192 tokens, naive --> One operation takes their place, far to
#   the right of the ridge.
# - All 128 heads work on each byte that is read, so that even a single sequence's attention, with a context of 8k, has an
#   intensity of 235, close to the ridge. <!-- source: operations() of DeepSeek-V3, context 8192 --> Lesson 15 is about that.
#
# </details>

# %% tags=["widget"]
viz.roofline.explorer(device="H100 SXM", model="Llama-3-8B")

# %% [markdown]
# ## Measure: time and memory against tokens
#
# Next to the clock, the memory. On an H100, naive attention of one sequence with 16 heads of 64 was run at 16,384 tokens,
# in `bfloat16`. The matrix $S$ alone would be 8 GiB in that type. <!-- source: 16 · 16384² · 2 bytes = 2^33 --> What ran
# is the library's version. Without a mask, it comes down to three lines:
#
# ```python
# s = (q.float() @ k.float().mT) * scale    # float32
# p = torch.softmax(s, dim=-1)              # float32
# o = p.to(torch.bfloat16) @ v              # bfloat16
# ```
#
# A tensor with a name stays in memory until the function returns. One without a name, such as the scores before they are
# scaled, is freed as soon as the next operation is done with it. **How many GiB did it allocate at its peak**, beyond its
# inputs and its output? Go through the lines: which matrices of $T \times T$ are alive at the same time, and how wide is
# each?

# %% tags=["predict"]
predict("01.extra_memory", None, "GiB")

# %% [markdown]
# Measure here first. On a GPU, the allocator keeps a record of its peak. On a CPU there is nobody to ask, so we run on a
# machine from `llmsys.hardware.memory`, which sees every tensor come to life and die. It is given a chip without a limit, so
# that all that the function makes stays there, and its `sram_peak` is what we look for. (`sdpa` is torch's fused attention.)

# %% tags=["measure"]
gpu = torch.cuda.is_available()
kind = {"device": "cuda", "dtype": torch.bfloat16} if gpu else {"device": "cpu", "dtype": torch.float32}
H, D = (16 if gpu else 1), 64


def extra_bytes(function, *inputs):
    """The most that is alive during a call beyond its inputs and its output."""
    if gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        o = function(*inputs)
        return torch.cuda.max_memory_allocated() - before - o.nbytes
    with HBM(sram=None) as machine:  # a chip without a limit: all that the function makes is on it
        o = function(*inputs)
    return max(machine.sram_peak - o.nbytes, 0)


growth = []
for T in (256, 512, 1024, 2048, 4096):
    inputs = tuple(torch.randn(1, H, T, D, **kind) for _ in range(3))
    with torch.no_grad():
        times = interleaved({"naive": attention, "sdpa": sdpa_attention}, [inputs], repeats=3, warmup=1)
        for name, function in (("naive", attention), ("sdpa", sdpa_attention)):
            row = {"name": name, "sweep": "growth", "B": 1, "H": H, "T": T, "D": D}
            growth.append(row | {"ms": 1e3 * times[name].median, "extra_bytes": extra_bytes(function, *inputs)})

for T in (1024, 2048, 4096):
    mine_mib, fused_mib = (row["extra_bytes"] / 2**20 for row in growth if row["T"] == T)
    print(f"here, {T:5,} tokens: yours allocates {mine_mib:7.1f} MiB, torch's {fused_mib:.2f} MiB")
viz.charts.attention_growth(recorded("attention"), here=growth, names=("naive", "sdpa"))

# %% tags=["claim"]
rows = {(row["name"], row["T"]): row for row in recorded("attention").rows if row["sweep"] == "growth"}
naive_16k, fused_16k = rows["naive", 16384], rows["sdpa", 16384]
print(f"recorded at 16k tokens: naive attention takes {naive_16k['ms'] / fused_16k['ms']:.1f}× as long as torch's fused one,")
print(f"and {naive_16k['extra_bytes'] / 2**30:.0f} GiB of memory beside its inputs and output, where that takes "
      f"{fused_16k['extra_bytes']:,} bytes")  # fmt: skip
print(f"that is {naive_16k['extra_bytes'] / (16 * 16384**2):g} bytes a score")
print(f"from 8k to 16k tokens: {naive_16k['extra_bytes'] / rows['naive', 8192]['extra_bytes']:.0f}× the memory, "
      f"{naive_16k['ms'] / rows['naive', 8192]['ms']:.1f}× the time")  # fmt: skip
print("at 32k tokens:", "naive attention runs out of memory" if ("naive", 32768) not in rows else "it ran")

# %% tags=["measure"]
measured("01.extra_memory", naive_16k["extra_bytes"] / 2**30, "GiB")

# %% [markdown]
# Naive attention's memory rises by four for each doubling, and its time nearly so: the square that you have counted. First
# it is slow, 23.4 times as slow as the fused kernel; one doubling later it does not run at all. The memory is full at 32k
# tokens of a single sequence, one layer, without a backward pass. At the peak, ten bytes a score are alive, while the second product runs:
# `s` and `p` in `float32`, for they have names, and the nameless copy of `p` in `bfloat16`. The fused kernel allocates next
# to nothing: no $T \times T$ matrix exists.
#
# Does the roofline explain the time, too? Here are the library's five kernels, with their 28 bytes a score. <!-- source:
# exercise (b), without q and k --> The first product has a ridge of its own: it is in `float32`, for exact scores, and tensor
# cores do not multiply such numbers.

# %% tags=["claim"]
scores = 16 * 16384**2  # heads · T²
product = 2 * scores * 64
least = seconds([(product, 4 * scores)], peak_flops=h100.flops["float32"], bandwidth=h100.bandwidth)  # q kᵀ
print(f"q kᵀ in float32 {1e3 * least:.1f} ms: its bytes alone would take {1e3 * 4 * scores / h100.bandwidth:.1f}")
least += seconds([(0, 8 * scores), (0, 8 * scores), (0, 6 * scores), (product, 2 * scores)], **machine)  # scale … P v
print(f"all five {1e3 * least:.1f} ms at the least, recorded {naive_16k['ms']:.1f}: "
      f"{100 * 1e3 * least / naive_16k['ms']:.0f}% of the speed within reach")  # fmt: skip
share = 1e12 * naive_16k["tflops"] / machine["peak_flops"]
print(f"its products reach {naive_16k['tflops']:.0f} TFLOP/s, {100 * share:.1f}% of the peak")

# %% [markdown]
# A bound, and kernels that reach 76% of it. They cannot reach all: even a plain copy gets no more than nine tenths of the
# 3.35 TB/s (lesson 02). <!-- source: llmsys/bench/recorded/softmax, copy: 3.0 TB/s --> The chip could do nearly a thousand
# TFLOP/s, and 2.2% of them is what this code gets. (The fifth of the opening picture is what three kernels in `bfloat16` could
# get, with heads of 128 and 8 bytes a score.)
#
# ## Where does the wall stand?
#
# Not where memory is full, but where the speed falls. So far, what a kernel wrote went to HBM. In truth there is a cache on the way, larger than SRAM and slower, and all
# multiprocessors share it: **L2**. It keeps what was last written or read, and it is not emptied between two kernels as SRAM is:
# the second still finds there what the first one wrote, if there was room. So with few tokens, $S$ and $P$ of all heads stay in L2
# and need not come from HBM. **The wall** stands at $T^\star$, the largest number of tokens with which both fit (both,
# for the softmax reads the one while it writes the other).
#
# The L2 of an H100 has 50 MiB. <!-- source: NVIDIA H100 architecture white paper --> For one sequence with 16 heads of 64, and
# $S$ and $P$ in `bfloat16`: **how large is $T^\star$?**

# %% tags=["predict"]
predict("01.wall_tokens", None, "tokens")

# %% [markdown]
# With $e$ bytes an element (`itemsize` in code), $S$ and $P$ of $BH$ heads fill a cache of $M$ bytes when
#
# $$ 2\, e\, B H\, T^2 = M \quad\Longrightarrow\quad T^\star = \sqrt{\frac{M}{2\, e\, B H}} \tag{5} $$

# %% tags=["measure"]
def wall(l2_bytes, e, heads=16):
    return int(math.sqrt(l2_bytes / (2 * e * heads)))


measured("01.wall_tokens", wall(h100.l2_bytes, e=2), "tokens")

# %% [markdown]
# How much slower is it beyond? Ask each kernel what it waits for. (4) holds for L2, too, with L2's bandwidth, and so L2 has a ridge of
# its own. For the H100's, no bandwidth is published, so let an A100 stand in for it. <!-- source: NVIDIA A100 architecture
# white paper: 5120 bytes a cycle, at 1.41 GHz --> Its L2 holds 40 MiB, so that its wall, again for 16 heads in `bfloat16`, stands
# at 809 tokens. Here is a length well on either side of it. (In between it is a slope, for a cache that is too small still holds
# a part. And to keep it simple, $q$, $k$, $v$ and $o$ are counted as if they came from the same memory.)

# %% tags=["claim"]
from llmsys.viz.kit.numbers import rate


def what_they_wait_for(T, level, *, bandwidth, peak_flops, e):
    """The three kernels of one head of D, if S and P are in the memory called `level`, with e bytes an element."""
    ridge = peak_flops / bandwidth
    print(f"T = {T:,}, D = {D}, {level} of {rate(bandwidth, unit='B/s')}: the ridge is {ridge:.1f} FLOP a byte")
    product, softmax = (2 * T * T * D, e * (2 * T * D + T * T)), (5 * T * T, e * 2 * T * T)  # FLOP, bytes
    for name, (flops, size) in {"q kᵀ": product, "softmax": softmax, "P v": product}.items():
        print(f"  {name:8}{flops / size:6.2f} FLOP a byte, waits for {level if flops / size < ridge else 'arithmetic'}")
    least = seconds([product, softmax, product], peak_flops=peak_flops, bandwidth=bandwidth)
    print(f"  all three: at most {rate(2 * product[0] / least)}")


a100 = DEVICES["A100 80GB SXM"]
peak = a100.flops["bfloat16"]
print(f"{a100.name}, bfloat16, {rate(peak)}; with 16 heads, its wall is at {wall(a100.l2_bytes, e=2)} tokens")
what_they_wait_for(512, "L2", bandwidth=a100.l2_bandwidth, peak_flops=peak, e=2)
what_they_wait_for(4096, "HBM", bandwidth=a100.bandwidth, peak_flops=peak, e=2)
print(f"{h100.name} with scores in float32: its wall is at {wall(h100.l2_bytes, e=4)} tokens")

# %% [markdown]
# At 512 tokens the products keep the arithmetic busy, and only the softmax waits for L2. At 4,096, beyond the wall, all three wait
# for HBM, and 64.24 of 186.2 TFLOP/s are left. (The products' intensity goes towards $2D/e = 64$; in the shorter sequence, the
# bytes of $q$, $k$, $v$ and $o$ count for more.)
#
# Further out it gets no worse: operations and bytes both grow with $T^2$, and so does the time. The runs recorded on the H100 show
# this: with each doubling they take about four times as long. Where the wall stands they cannot show. With scores in `float32`,
# theirs is at 640 tokens, by (5) with $e = 4$, and the shortest has 1,024.
#
# And on this machine?

# %% tags=["measure"]
here = this_machine()
dtype = str(kind["dtype"]).removeprefix("torch.")
print(f"{here.name}, {dtype}, {rate(here.flops[dtype])}")
what_they_wait_for(4096, "memory", bandwidth=here.bandwidth, peak_flops=here.flops[dtype], e=kind["dtype"].itemsize)

# %% [markdown]
# A CPU core computes little for each byte that it can fetch, so its ridge is low, and usually only the softmax is below it. By the
# roofline, then, there is hardly a wall on a CPU, wherever $S$ is. If your chart above is steeper than that at its end, it shows
# something that (4) does not count: for every large matrix PyTorch asks the operating system for new memory, whose pages have
# to be cleared before they are used.
#
# ## Your attention in a real model
#
# SmolLM2 has 30 layers with 9 query heads and 3 key heads of 64 each. Your function is causal, knows groups, and can
# start from a cache. So it can be the model's attention. Greedy decoding takes the most probable token each time: if you
# compute the same thing as torch's fused kernel, the model says the same thing, to the letter.

# %% tags=["engine"]
from llmsys.models import generate, load_model

model = load_model()
question = "What does attention do in a language model? Answer in one sentence."

yours = generate(model, question, attention=attention, cache=True, max_new_tokens=32)
print(yours.text)

# %% tags=["engine", "claim"]
torchs = generate(model, question, attention="sdpa", max_new_tokens=32)
print("your attention chooses the same tokens as torch's fused attention:", yours.tokens == torchs.tokens)

# %% [markdown]
# ## What production does differently
#
# - **PyTorch** keeps naive attention as the fallback: `_scaled_dot_product_attention_math`, which
#   `sdpa_kernel(SDPBackend.MATH)` selects. For stability it scales $q$ and $k$ before the product, each by the *square
#   root* of the scale: that is $T D$ elements instead of $T^2$. Otherwise `scaled_dot_product_attention` dispatches to fused
#   kernels, in which $S$ never leaves the chip.
# - **Megatron-LM**'s `DotProductAttention` shows how far one gets without tiling.
#   `torch.baddbmm(…, alpha=self.softmax_scale)` folds the scale into the product, `FusedScaleMaskSoftmax` makes one kernel
#   of scale, mask and softmax, and the scores go into one preallocated buffer for all layers. Three kernels, as you have
#   counted. $S$ and $P$ still cross.
# - **Selective recomputation** ([Korthikanti et al., 2022](https://arxiv.org/abs/2205.05198)) drops $P$ and computes it
#   again in the backward pass, in exactly that class: for GPT-3, 2.7% more operations save 70% of the activations'
#   memory. Lesson 22.
# - **transformers** has it as `eager_attention_forward`; `repeat_kv` there gives every query head a copy of
#   its keys and values. The library's `naive_attention` stacks the queries of a group instead, and copies nothing.
# - **FlashAttention** ([Dao et al., 2022](https://arxiv.org/abs/2205.14135)) is where bytes, not operations, were first
#   counted for attention; its section 3.2 proves how few are enough. That most of a transformer's time is data movement
#   had been measured by [Ivanov et al., 2020](https://arxiv.org/abs/2007.00072).
# - **Nsight Compute** draws the roofline of every kernel it profiles, with its L1 and L2 as levels of their own:
#   `ncu --set roofline`.
#
# ## Do you have it?
#
# <details><summary><b>1.</b> A kernel has an intensity of 10 on a machine whose ridge is 295. The next machine computes twice as fast, with the same memory. How much faster is the kernel there? And what if, on the old machine, its tensors are stored in fp8 instead of bf16?</summary>
#
# Not at all: it waits for memory, and that is as slow as before. Narrower tensors help, for half of the bytes take half
# of the time, although the arithmetic has not changed.
# </details>
#
# <details><summary><b>2.</b> "We are memory-bound, so let us double the batch." For which operations of a model is that good advice, and why not for naive attention?</summary>
#
# For those with weights: the weights are read once for the whole batch, so that bytes hardly grow and operations double.
# Attention has no weights. Every sequence has an S of its own, and bytes and operations grow alike.
# </details>
#
# <details><summary><b>3.</b> You train SmolLM2 with naive attention, 8 sequences of 2048 tokens, bf16. How much memory do the P of all its layers take, beside 0.25 GiB of weights?</summary>
#
# 30 layers · 8 sequences · 9 heads · 2048² · 2 bytes = 16.9 GiB, 67 times as much. <!-- source: 30·8·9·2048²·2 =
# 18,119,393,280 bytes; 134.5 million weights of 2 bytes --> Without grouping it would be the same: P has the query heads.
# With FlashAttention it is the log-sum-exp, 4 bytes a row, 17 MiB; and o, which is needed anyway. <!-- source:
# 30·8·9·2048·4 = 17,694,720 bytes -->
# </details>
#
# **Next:** lesson 02, online softmax: how to take the softmax of a row that you never hold.
