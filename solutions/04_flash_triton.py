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
# # 04 · FlashAttention in Triton
#
# Lesson 03 ended with the right algorithm in the wrong language. Each line of its loop was a kernel of its own, which
# read its operands from HBM and wrote its result back; the tile that we imagined on the chip never stayed there.
#
# **The idea:** the whole loop becomes *one* kernel. The loop over tiles of queries turns into a grid of programs. The
# loop over tiles of keys runs inside a program, and the state $(m, \ell, O)$ stays in that program's registers until
# it is done.
#
# You will write the loop, teach it to skip what a causal mask hides, repair four kernels that are wrong in the ways
# in which such kernels usually are, and write the whole kernel, with heads, groups and ragged ends. Then you read
# what a compiler makes of it for an H100 that need not be here, see how fast it is on one that was, and let SmolLM2
# talk through it.

# %% tags=["setup"]
import warnings
from functools import partial

import torch

from llmsys import viz
from llmsys.attention import STAGES, naive_attention
from llmsys.attention.cost import tiled_bytes
from llmsys.bench import interleaved, recorded
from llmsys.course import check, hint, measured, mine, predict
from llmsys.hardware import sanitizer
from llmsys.hardware.tier import load_triton, tier, triton_device

triton, tl = load_triton()  # Triton decides when it is first imported whether it interprets: before anything else

# %%
viz.flash_triton.overview()

# %% [markdown]
# ## Predict: what is one kernel worth?
#
# Take one sequence of 16,384 tokens with 16 heads of 64, in `bfloat16`, no mask, on an H100. Lesson 03's tiled
# attention, written in PyTorch, with tiles of 512 by 512, and the kernel of this lesson rescale the same state, tile by tile.
# **How many times as fast is the kernel?** (Mind what it is compared with: in lesson 03's chart, naive attention was
# faster than the tiles.)

# %% tags=["predict"]
predict("04.one_kernel", None, "×")

# %% [markdown]
# ## From tiles to programs
#
# Put the two side by side. Everything on the left you have written in lesson 03, and most of what is on the right in
# lesson 02:
#
# | lesson 03, in PyTorch | here, in Triton |
# |---|---|
# | `for i in range(0, Tq, block_q)` | a grid of programs; `tl.program_id(0)` says which turn of that loop I am |
# | `hbm.load(q[i : i + block_q])` | `tl.load` of a whole tile of addresses |
# | a tensor on the chip: `m`, `l`, `O` | a variable of the program |
# | `Q @ K.mT` | `tl.dot(q, tl.trans(k))` |
# | a slice at the end is shorter | a tile is never shorter: a **mask** switches lanes off |
# | `hbm.store(o[i : i + block_q], …)` | `tl.store` to a tile of addresses |
#
# The outer loop can be torn apart like this because its turns do not need each other: each tile of queries has a
# state of its own. (With the keys outside it could not. That was the last argument of lesson 03.)
#
# **A tile of addresses.** In lesson 02 a program loaded a row, with addresses `x_ptr + cols`. Now it loads a tile of
# rows. Element $(i, d)$ of a matrix lies $i \cdot \text{stride} + d$ elements behind the first one. Write the row
# numbers as a column, the column numbers as a row, and broadcasting makes the table of all addresses. Here is that
# line in PyTorch, for the third tile of 4 rows, in a matrix whose rows begin 10 elements apart though only 6 of them
# are ours:

# %% tags=["claim"]
BLOCK_M, D, stride = 4, 6, 10
rows = 2 * BLOCK_M + torch.arange(BLOCK_M)  # as for the program with the number 2
d = torch.arange(D)
print(rows[:, None] * stride + d[None, :])  # (BLOCK_M, 1) + (1, D): (BLOCK_M, D)

# %% [markdown]
# Two rules to keep. The **token** is multiplied by the stride, the column is not. And a head is often a slice of a
# wider matrix, so the stride is not `D`; whoever multiplies by `D` reads somebody else's elements as soon as it is
# not.
#
# **A product of tiles.** `tl.dot(a, b)` multiplies an (M, K) by a (K, N) tile on the tensor cores. Sizes are powers
# of two, 16 at least. Both operands have one dtype, and the result is `float32` whatever that is. One trap: where the
# operands are `float32`, tensor cores round them to 10 bits of mantissa (TF32), and that is the default.
# `input_precision="ieee"` asks for all 23. <!-- source: Triton's documentation of tl.dot, input_precision: "tf32" by
# default where there are tensor cores --> You will not notice in the interpreter, which always computes in full.
#
# Here is a complete kernel with both. It does the first step of *naive* attention: a program has a tile of queries,
# walks over the keys, and stores the scores.


# %%
@triton.jit
def scores_kernel(
    q_ptr, k_ptr, s_ptr, q_stride, k_stride, s_stride, Tk, scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,) my queries
    d = tl.arange(0, D)  # (D,)
    q = tl.load(q_ptr + rows[:, None] * q_stride + d[None, :])  # (BLOCK_M, D), loaded once
    for start in range(0, Tk, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)  # (BLOCK_N,) the tile that is passing
        k = tl.load(k_ptr + keys[:, None] * k_stride + d[None, :])  # (BLOCK_N, D)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # (BLOCK_M, D) times (D, BLOCK_N)
        tl.store(s_ptr + rows[:, None] * s_stride + keys[None, :], s)  # (BLOCK_M, BLOCK_N)


generator = torch.Generator().manual_seed(0)
q, k, v = (torch.randn(64, 32, generator=generator).to(triton_device()) for _ in range(3))  # (T, D)
s = torch.empty(64, 64, device=q.device)
with sanitizer.watch(q=q, k=k, s=s) as report:
    strides = q.stride(0), k.stride(0), s.stride(0)
    scores_kernel[(64 // 16,)](q, k, s, *strides, 64, 32**-0.5, D=32, BLOCK_M=16, BLOCK_N=16)
print("agrees with q kᵀ / √D:", torch.allclose(s, q @ k.T / 32**0.5, atol=1e-5))
if sanitizer.available():
    print(report)

# %% [markdown]
# Four programs, each with 16 queries, each loading all of `k`. And then the sin: the scores go out to HBM, $T^2$
# elements. That line has to go. What comes in its place is lesson 03's loop.
#
# ## Exercise (a): the inner loop (30 minutes)
#
# One change before you write it. A GPU has no instruction for $e^x$. It has one for $2^x$, and computes $e^x$ as
# $2^{x \log_2 e}$: a multiplication for every score. But every score is multiplied by the scale anyway. So put
# $\log_2 e$ into the scale, and work in **base two** throughout:
#
# $$ \begin{aligned} S &= Q K^T \cdot \underbrace{\text{scale} \cdot \log_2 e}_{\texttt{scale\_log2}} & m_\text{new} &= \max(m, \operatorname{rowmax} S) \\ P &= 2^{S - m_\text{new}} & a &= 2^{m - m_\text{new}} \\ \ell &\leftarrow a\,\ell + \operatorname{rowsum} P & O &\leftarrow a\,O + P\,V \qquad\qquad m \leftarrow m_\text{new} \end{aligned} \tag{1} $$
#
# The weights are the same: $2^{(s - \max) \log_2 e}$ is $e^{s - \max}$. The division $o = O / \ell$ comes after the
# last tile, as before.
#
# The skeleton finds the program's rows, loads $q$, makes the state, and stores the result. You write what is between.
# Lengths are multiples of the tiles, so nothing needs a mask yet. What you need: `tl.load`, `tl.dot`, `tl.trans`,
# `tl.maximum`, `tl.max(s, axis=1)`, `tl.sum(p, axis=1)`, `tl.exp2`, both products with `input_precision="ieee"`, and
# `p.to(v.dtype)`, because the second one, too, wants its operands in one dtype. (Cast $P$ down, not $V$ up: no tensor core multiplies in full
# `float32`.) `m[:, None]` makes a column of a row's numbers.

# %% tags=["exercise"] exercise="04.inner_loop"
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def inner_loop(
    q_ptr, k_ptr, v_ptr, o_ptr, q_stride, k_stride, v_stride, o_stride, Tq, Tk, scale_log2,
    D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """o = softmax(q kᵀ · scale) v for one head: a program has BLOCK_M queries, and walks over all keys.

    q_ptr … o_ptr        pointers to q (Tq, D), k (Tk, D), v (Tk, D), o (Tq, D), float32 or float16
    q_stride … o_stride  elements from one token to the next; the D elements of a token are adjacent
    scale_log2           scale · log2(e): for exponents in base two
    CAUSAL               False here
    BLOCK_M, BLOCK_N     queries and keys of a tile; Tq and Tk are multiples of them

    The state is kept in float32. Not allowed: loading a tile of k or v twice.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    d = tl.arange(0, D)  # (D,)
    q = tl.load(q_ptr + rows[:, None] * q_stride + d[None, :])  # (BLOCK_M, D)
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, D), tl.float32)
    ### BEGIN SOLUTION
    for start in range(0, Tk, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
        k = tl.load(k_ptr + keys[:, None] * k_stride + d[None, :])  # (BLOCK_N, D)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2  # (BLOCK_M, BLOCK_N)
        m_new = tl.maximum(m, tl.max(s, axis=1))
        p = tl.exp2(s - m_new[:, None])
        shrink = tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, axis=1)
        v = tl.load(v_ptr + keys[:, None] * v_stride + d[None, :])  # (BLOCK_N, D)
        o = o * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        m = m_new
    ### END SOLUTION
    o = o / l[:, None]
    tl.store(o_ptr + rows[:, None] * o_stride + d[None, :], o.to(o_ptr.dtype.element_ty))


# %% tags=["check"] exercise="04.inner_loop"
check("04.inner_loop", inner_loop)

# %% [markdown]
# How does the check launch a kernel? By the library's launcher, `attend_one_head(q, k, v, kernel=…)`, which you can
# use as well. Lesson 03 counted the bytes of this loop on a machine that we had made up, and found a formula for
# them. Does the real kernel keep to it?

# %%
from llmsys.attention.one_head import attend_one_head, one_head_kernel

attend = partial(attend_one_head, kernel=mine("inner_loop", default=one_head_kernel))
for block_m in (16, 32, 64):
    with sanitizer.watch(q=q, k=k, v=v) as report:
        attend(q, k, v, block_m=block_m, block_n=16)
    moved = sum(report.bytes_loaded.values()) + sum(report.bytes_stored.values())
    formula = tiled_bytes(64, 64, 32, 32, block_q=block_m) - 4 * 64  # without a log-sum-exp
    if sanitizer.available():
        print(f"{block_m} queries a tile: the kernel moved {moved:,} B, lesson 03's formula says {formula:,} B")

# %% [markdown]
# To the byte. Those were tiles that somebody imagined; these are loads of a kernel.
#
# ## Causal: what is hidden need not be loaded
#
# Query $i$ is token $i + T_k - T_q$, and sees the keys up to itself. For a tile of queries that makes three kinds of
# tiles of keys: those before the diagonal are seen as a whole, those on it in part, and those behind it not at all.
# Beside each row of tiles below stand two numbers. Every query of the row sees all keys before **whole**, so that
# these tiles need no mask; before **stop** some query sees each key, and there the program's loop ends.

# %%
viz.flash_triton.causal_tiles(64, 64, 16, 16)

# %% [markdown]
# A mask alone would give the right answer, for $2^{-\infty} = 0$. But it would load and multiply tiles only to throw
# them away. How many are there? Take 256 tokens in tiles of 16 × 16. **Which share of the bytes of $K$ and $V$ do
# programs that skip still load, all of them together?** A quick answer is half of them. Be more precise.

# %% tags=["predict"]
predict("04.causal_share", None, "%")

# %% [markdown]
# ## Exercise (b): skip and mask (20 minutes)
#
# Take your loop from (a) along, and add two things that apply where `CAUSAL` is true:
#
# - **Skip.** Where must the loop end? After the last key that the program's *last* row sees.
# - **Mask.** Within a tile, scores of hidden keys are $-\infty$ before the maximum is taken: `tl.where(seen, s,
#   float("-inf"))`, with `seen` a (BLOCK_M, BLOCK_N) table made like the table of addresses.
#
# `CAUSAL` is a `tl.constexpr`: an `if CAUSAL:` is decided when the kernel is compiled, and costs nothing. $T_q \le
# T_k$, both are still multiples of the tiles, and the tiles need not be square.

# %% tags=["exercise"] exercise="04.causal"
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def causal(
    q_ptr, k_ptr, v_ptr, o_ptr, q_stride, k_stride, v_stride, o_stride, Tq, Tk, scale_log2,
    D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """As (a): q (Tq, D), k (Tk, D), v (Tk, D), o (Tq, D), whole tiles. Where CAUSAL, row i sees keys j ≤ i + Tk − Tq.

    Tq is at most Tk, so that every row sees a key. Tiles of keys that no row of the program sees are not loaded.
    """
    ### BEGIN SOLUTION
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, D)
    q = tl.load(q_ptr + rows[:, None] * q_stride + d[None, :])
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, D), tl.float32)
    stop = Tk
    if CAUSAL:
        stop = tl.program_id(0) * BLOCK_M + BLOCK_M + Tk - Tq
    for start in range(0, stop, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = tl.load(k_ptr + keys[:, None] * k_stride + d[None, :])
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        if CAUSAL:
            s = tl.where(keys[None, :] <= rows[:, None] + Tk - Tq, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, axis=1))
        p = tl.exp2(s - m_new[:, None])
        shrink = tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, axis=1)
        v = tl.load(v_ptr + keys[:, None] * v_stride + d[None, :])
        o = o * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        m = m_new
    tl.store(o_ptr + rows[:, None] * o_stride + d[None, :], (o / l[:, None]).to(o_ptr.dtype.element_ty))
    ### END SOLUTION


# %% tags=["check"] exercise="04.causal"
check("04.causal", causal)

# %% [markdown]
# Now count, on the interpreter, what a causal kernel loads of $K$ and $V$ beside one that is not:

# %% tags=["measure"]
attend = partial(attend_one_head, kernel=mine("causal", default=one_head_kernel))
long = [torch.randn(256, 16, device=triton_device()) for _ in range(3)]
keys_loaded = {}
for causal_mask in (False, True):
    with sanitizer.watch(q=long[0], k=long[1], v=long[2]) as report:
        attend(*long, causal=causal_mask)
    keys_loaded[causal_mask] = report.bytes_loaded["k"] + report.bytes_loaded["v"]
if sanitizer.available():
    share = 100 * keys_loaded[True] / keys_loaded[False]
    print(f"causal {keys_loaded[True]:,} B, not causal {keys_loaded[False]:,} B")
else:  # compiled kernels are not watched: what the check has found in the interpreter
    share = 100 * sum(range(1, 17)) / 16**2
measured("04.causal_share", share, "%")

# %% [markdown]
# With $n$ tiles on a side, $1 + 2 + \dots + n$ of $n^2$ are loaded: a share of $(n + 1) / 2n$. The excess over a half
# is the diagonal, whose tiles are loaded for half of what is in them. It is large for short sequences and large
# tiles, and vanishes for long ones. Keep it in mind when you read a causal kernel's speed: by convention only half of
# the operations are counted, so at few tokens a causal kernel looks slower than it is.
#
# ## Ends: four kernels to repair
#
# Real lengths are not multiples of anything. A query may be alone, a conversation has the length it has, and with
# more queries than keys there are rows that see nothing. Each of the next four kernels was written by somebody who
# forgot one of these things, or mixed up two strides. None of the mistakes is contrived: three of the four are silent on a GPU, and the fourth
# is NaN.
#
# The routine is the same each time, and takes about five minutes: look at the kernel and at what comes of it, repair it
# in the cell below, check. That cell begins with the kernel's body, under a line `raise NotImplementedError`, which says
# that nobody has been there yet: take it out. (In nbgrader's form of the course the cell is empty: copy the body.)
# This runs a kernel under the sanitizer, and compares its result with the definition:


# %%
def examine(kernel, Tq, Tk, *, D=16, causal=False):
    """Run a one-head kernel under the sanitizer; print its report, and which rows differ from the definition's."""
    if not sanitizer.available():
        print("A broken kernel is only run in the interpreter, under the sanitizer: restart with TRITON_INTERPRET=1.")
        return
    generator = torch.Generator().manual_seed(Tq + Tk)
    q, k, v = (torch.randn(T, D, generator=generator).to(triton_device()) for T in (Tq, Tk, Tk))
    with sanitizer.watch(q=q, k=k, v=v) as report, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the interpreter's NumPy speaks of NaN; no GPU would
        o = attend_one_head(q, k, v, causal=causal, kernel=kernel)
    exact = naive_attention(q[None, None], k[None, None], v[None, None], causal=causal)[0, 0]
    wrong = ~torch.isclose(o, exact, atol=1e-4).all(dim=1)
    print(report)
    print(f"{int(wrong.sum())} of {Tq} rows are wrong, {int(o.isnan().any(dim=1).sum())} of them NaN")


# %% [markdown]
# ### The first: 24 queries in tiles of 16 (5 minutes)


# %%
@triton.jit
def found_mask(
    q_ptr, k_ptr, v_ptr, o_ptr, q_stride, k_stride, v_stride, o_stride, Tq, Tk, scale_log2,
    D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, D)
    q = tl.load(q_ptr + rows[:, None] * q_stride + d[None, :])
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, D), tl.float32)
    for start in range(0, Tk, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = tl.load(k_ptr + keys[:, None] * k_stride + d[None, :])
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        m_new = tl.maximum(m, tl.max(s, axis=1))
        p = tl.exp2(s - m_new[:, None])
        shrink = tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, axis=1)
        v = tl.load(v_ptr + keys[:, None] * v_stride + d[None, :])
        o = o * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        m = m_new
    tl.store(o_ptr + rows[:, None] * o_stride + d[None, :], (o / l[:, None]).to(o_ptr.dtype.element_ty))


examine(found_mask, Tq=24, Tk=32)

# %% [markdown]
# Every row is right, and yet the kernel is broken: it read behind $q$ and wrote behind $o$. (The sanitizer kept those
# lanes from doing it; on a GPU they would have written into whatever tensor lies there.) Repair it. The last program
# still has BLOCK_M rows, but only some of them exist.

# %% tags=["exercise"] exercise="04.repair_mask" begins_with="found_mask"
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def repair_mask(
    q_ptr, k_ptr, v_ptr, o_ptr, q_stride, k_stride, v_stride, o_stride, Tq, Tk, scale_log2,
    D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """q (Tq, D), k (Tk, D), v (Tk, D), o (Tq, D); Tq is anything, Tk a multiple of BLOCK_N."""
    ### BEGIN SOLUTION
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, D)
    q = tl.load(q_ptr + rows[:, None] * q_stride + d[None, :], mask=rows[:, None] < Tq, other=0.0)
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, D), tl.float32)
    for start in range(0, Tk, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = tl.load(k_ptr + keys[:, None] * k_stride + d[None, :])
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        m_new = tl.maximum(m, tl.max(s, axis=1))
        p = tl.exp2(s - m_new[:, None])
        shrink = tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, axis=1)
        v = tl.load(v_ptr + keys[:, None] * v_stride + d[None, :])
        o = o * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        m = m_new
    o_at = o_ptr + rows[:, None] * o_stride + d[None, :]
    tl.store(o_at, (o / l[:, None]).to(o_ptr.dtype.element_ty), mask=rows[:, None] < Tq)
    ### END SOLUTION


# %% tags=["check"] exercise="04.repair_mask"
check("04.repair_mask", repair_mask)

# %% [markdown]
# ### The second: 20 keys in tiles of 16 (5 minutes)
#
# Here all lanes behave. The missing keys and values are masked, and arrive as zeros.


# %%
@triton.jit
def found_sum(
    q_ptr, k_ptr, v_ptr, o_ptr, q_stride, k_stride, v_stride, o_stride, Tq, Tk, scale_log2,
    D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, D)
    q = tl.load(q_ptr + rows[:, None] * q_stride + d[None, :])
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, D), tl.float32)
    for start in range(0, Tk, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = tl.load(k_ptr + keys[:, None] * k_stride + d[None, :], mask=keys[:, None] < Tk, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        m_new = tl.maximum(m, tl.max(s, axis=1))
        p = tl.exp2(s - m_new[:, None])
        shrink = tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, axis=1)
        v = tl.load(v_ptr + keys[:, None] * v_stride + d[None, :], mask=keys[:, None] < Tk, other=0.0)
        o = o * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        m = m_new
    tl.store(o_ptr + rows[:, None] * o_stride + d[None, :], (o / l[:, None]).to(o_ptr.dtype.element_ty))


examine(found_sum, Tq=16, Tk=20)

# %% [markdown]
# Not one access is wrong, and every row is. `other=0.0` is harmless for a product. Follow a zero further.

# %% tags=["exercise"] exercise="04.repair_sum" begins_with="found_sum"
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def repair_sum(
    q_ptr, k_ptr, v_ptr, o_ptr, q_stride, k_stride, v_stride, o_stride, Tq, Tk, scale_log2,
    D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """q (Tq, D), k (Tk, D), v (Tk, D), o (Tq, D); Tq is a multiple of BLOCK_M, Tk is anything."""
    ### BEGIN SOLUTION
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, D)
    q = tl.load(q_ptr + rows[:, None] * q_stride + d[None, :])
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, D), tl.float32)
    for start in range(0, Tk, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = tl.load(k_ptr + keys[:, None] * k_stride + d[None, :], mask=keys[:, None] < Tk, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        s = tl.where(keys[None, :] < Tk, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, axis=1))
        p = tl.exp2(s - m_new[:, None])
        shrink = tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, axis=1)
        v = tl.load(v_ptr + keys[:, None] * v_stride + d[None, :], mask=keys[:, None] < Tk, other=0.0)
        o = o * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        m = m_new
    tl.store(o_ptr + rows[:, None] * o_stride + d[None, :], (o / l[:, None]).to(o_ptr.dtype.element_ty))
    ### END SOLUTION


# %% tags=["check"] exercise="04.repair_sum"
check("04.repair_sum", repair_sum)

# %% [markdown]
# (Lesson 02 had it easier. There the row itself was loaded, with `other=-inf`. Here the row is a product, and its
# $-\infty$ has to be put in after it. What is masked at the load must be masked again at the score.)
#
# ### The third: k, loaded transposed (5 minutes)
#
# This author saw that `tl.trans` is not needed: a tile can be loaded as its own transpose, (D, BLOCK_N), by the
# addresses alone. The library's kernel does so, too. But which index takes the stride?


# %%
@triton.jit
def found_strides(
    q_ptr, k_ptr, v_ptr, o_ptr, q_stride, k_stride, v_stride, o_stride, Tq, Tk, scale_log2,
    D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, D)
    q = tl.load(q_ptr + rows[:, None] * q_stride + d[None, :])
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, D), tl.float32)
    for start in range(0, Tk, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = tl.load(k_ptr + d[:, None] * k_stride + keys[None, :])  # (D, BLOCK_N)
        s = tl.dot(q, k, input_precision="ieee") * scale_log2
        m_new = tl.maximum(m, tl.max(s, axis=1))
        p = tl.exp2(s - m_new[:, None])
        shrink = tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, axis=1)
        v = tl.load(v_ptr + keys[:, None] * v_stride + d[None, :])
        o = o * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        m = m_new
    tl.store(o_ptr + rows[:, None] * o_stride + d[None, :], (o / l[:, None]).to(o_ptr.dtype.element_ty))


examine(found_strides, Tq=16, Tk=32)
examine(found_strides, Tq=16, Tk=16, D=64)

# %% [markdown]
# With 32 keys of 16 elements nothing leaves the tensor, and the sanitizer is silent. With 16 keys of 64 it speaks.
# Had the author tried only the first shape, or had no definition to compare with, the kernel would have been shipped.

# %% tags=["exercise"] exercise="04.repair_strides" begins_with="found_strides"
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def repair_strides(
    q_ptr, k_ptr, v_ptr, o_ptr, q_stride, k_stride, v_stride, o_stride, Tq, Tk, scale_log2,
    D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """q (Tq, D), k (Tk, D), v (Tk, D), o (Tq, D); Tq and Tk are multiples of the tiles."""
    ### BEGIN SOLUTION
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, D)
    q = tl.load(q_ptr + rows[:, None] * q_stride + d[None, :])
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, D), tl.float32)
    for start in range(0, Tk, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = tl.load(k_ptr + keys[None, :] * k_stride + d[:, None])  # (D, BLOCK_N)
        s = tl.dot(q, k, input_precision="ieee") * scale_log2
        m_new = tl.maximum(m, tl.max(s, axis=1))
        p = tl.exp2(s - m_new[:, None])
        shrink = tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, axis=1)
        v = tl.load(v_ptr + keys[:, None] * v_stride + d[None, :])
        o = o * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        m = m_new
    tl.store(o_ptr + rows[:, None] * o_stride + d[None, :], (o / l[:, None]).to(o_ptr.dtype.element_ty))
    ### END SOLUTION


# %% tags=["check"] exercise="04.repair_strides"
check("04.repair_strides", repair_strides)

# %% [markdown]
# ### The fourth: more queries than keys (5 minutes)
#
# This one has all the masks. It is causal, and it is asked for 24 queries with 16 keys: the first 8 queries come
# before the first key. By our contract they give $o = 0$.


# %%
@triton.jit
def found_empty_row(
    q_ptr, k_ptr, v_ptr, o_ptr, q_stride, k_stride, v_stride, o_stride, Tq, Tk, scale_log2,
    D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, D)
    q = tl.load(q_ptr + rows[:, None] * q_stride + d[None, :], mask=rows[:, None] < Tq, other=0.0)
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, D), tl.float32)
    stop = Tk
    if CAUSAL:
        stop = tl.minimum(tl.program_id(0) * BLOCK_M + BLOCK_M + Tk - Tq, Tk)
    for start in range(0, stop, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = tl.load(k_ptr + keys[:, None] * k_stride + d[None, :], mask=keys[:, None] < Tk, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        seen = keys[None, :] < Tk
        if CAUSAL:
            seen = seen & (keys[None, :] <= rows[:, None] + Tk - Tq)
        s = tl.where(seen, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, axis=1))
        p = tl.exp2(s - m_new[:, None])
        shrink = tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, axis=1)
        v = tl.load(v_ptr + keys[:, None] * v_stride + d[None, :], mask=keys[:, None] < Tk, other=0.0)
        o = o * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        m = m_new
    o_at = o_ptr + rows[:, None] * o_stride + d[None, :]
    tl.store(o_at, (o / l[:, None]).to(o_ptr.dtype.element_ty), mask=rows[:, None] < Tq)


examine(found_empty_row, Tq=24, Tk=16, causal=True)
examine(found_empty_row, Tq=48, Tk=16, causal=True)

# %% [markdown]
# Both runs give NaN, for two different reasons. In the first, a program has rows that see a key beside rows that see
# none. In the second, the first two programs have no loop to run at all. Find both.

# %% tags=["exercise"] exercise="04.repair_empty_row" begins_with="found_empty_row"
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def repair_empty_row(
    q_ptr, k_ptr, v_ptr, o_ptr, q_stride, k_stride, v_stride, o_stride, Tq, Tk, scale_log2,
    D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """q (Tq, D), k (Tk, D), v (Tk, D), o (Tq, D); all lengths are allowed, and a row that sees no key gives o = 0."""
    ### BEGIN SOLUTION
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, D)
    q = tl.load(q_ptr + rows[:, None] * q_stride + d[None, :], mask=rows[:, None] < Tq, other=0.0)
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, D), tl.float32)
    stop = Tk
    if CAUSAL:
        stop = tl.minimum(tl.program_id(0) * BLOCK_M + BLOCK_M + Tk - Tq, Tk)
    for start in range(0, stop, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = tl.load(k_ptr + keys[:, None] * k_stride + d[None, :], mask=keys[:, None] < Tk, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        seen = keys[None, :] < Tk
        if CAUSAL:
            seen = seen & (keys[None, :] <= rows[:, None] + Tk - Tq)
        s = tl.where(seen, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, axis=1))
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s - shift[:, None])
        shrink = tl.exp2(m - shift)
        l = l * shrink + tl.sum(p, axis=1)
        v = tl.load(v_ptr + keys[:, None] * v_stride + d[None, :], mask=keys[:, None] < Tk, other=0.0)
        o = o * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        m = m_new
    o = o / tl.where(l == 0, 1.0, l)[:, None]
    o_at = o_ptr + rows[:, None] * o_stride + d[None, :]
    tl.store(o_at, o.to(o_ptr.dtype.element_ty), mask=rows[:, None] < Tq)
    ### END SOLUTION


# %% tags=["check"] exercise="04.repair_empty_row"
check("04.repair_empty_row", repair_empty_row)

# %% [markdown]
# ## From one head to a model
#
# Three things are missing: sequences and heads, groups, and heads that are not a power of two.
#
# **Sequences and heads** are a second dimension of the grid. Program $(x, y)$ works for key head $y$, counted through
# all sequences: $h = y \bmod H_{kv}$ of sequence $b = \lfloor y / H_{kv} \rfloor$. Its pointers start at `k_ptr + b *
# k_stride_b + h * k_stride_h`, and from there on it is one head's kernel.
#
# **Groups.** $G$ query heads share a key head. Lesson 03 stacked them in one tile, so that one load of $K$ serves
# them all. Here they are *interleaved*: the $G \cdot T_q$ rows of a key head are numbered so that the heads of one
# query are neighbours.

# %% tags=["claim"]
G, Tq, h = 3, 4, 1  # three query heads to a key head, four queries, and this program's key head is number 1
print("row       ", *(f"{row:3}" for row in range(G * Tq)))
print("query     ", *(f"{row // G:3}" for row in range(G * Tq)))
print("query head", *(f"{h * G + row % G:3}" for row in range(G * Tq)))

# %% [markdown]
# Why not all the rows of one head first, and then those of the next? Because of the causal mask. Interleaved, 16
# neighbouring rows span few queries, so that they see nearly the same keys, and the loop can end early. Head by head they would
# span 16 queries, or the last ones of one head and the first ones of the next. (Lesson 03's tile spanned as few: it took the same
# queries of every head. But that makes $G$ times as many rows, and the rows of a tile here are a power of two, whatever $G$ is.) And
# when one token is decoded, its $G$ heads are $G$ rows of one tile that would otherwise have a single one. Note what changes in (b): what a row may
# see depends on its *query*, $r // G$, and not on its number.
#
# **Heads of any size.** `tl.arange` wants powers of two, so a tile has `BLOCK_DK` columns, the next power of two, of
# which `DK` exist. The others are masked like rows. Zeros beyond `DK` add nothing to $q \cdot k$; columns beyond `DV`
# are not stored. ($D_k$ and $D_v$ may differ, hence two of each.)
#
# **The log-sum-exp** goes out with $o$, for lesson 05's backward pass and for merging results. It is a natural
# logarithm, and your $m$ and $\ell$ are in base two:
#
# $$ \mathrm{lse} = m \ln 2 + \ln \ell = (m + \log_2 \ell) \cdot \ln 2 \tag{2} $$
#
# ## Exercise (c): the whole kernel (50 minutes)
#
# All of it together, with the argument list of the library's own kernel. Start from your last repair, which has every
# mask for one head. Put first what says *which*: `b`, `h`, `rows`, `query`, `head`. Then the pointers, then the
# masks.
#
# It goes through the library's launcher, `flash_attention(q, k, v, kernel=ragged_groups)`, so it must keep the
# contract of every attention stage: any $B$, $H$, $T$, $D \le 256$, causal or not, $o = 0$ and $\mathrm{lse} =
# -\infty$ for a row that sees nothing.

# %% tags=["exercise"] exercise="04.ragged_groups"
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def ragged_groups(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr,
    q_stride_b, q_stride_h, q_stride_t,
    k_stride_b, k_stride_h, k_stride_t,
    v_stride_b, v_stride_h, v_stride_t,
    o_stride_b, o_stride_h, o_stride_t,
    Hkv, Tq, Tk, scale_log2,
    G: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """o and lse of one tile of rows: the G query heads of a key head, interleaved.

    q_ptr …     pointers to q (B, G·Hkv, Tq, DK), k (B, Hkv, Tk, DK), v (B, Hkv, Tk, DV), o (B, G·Hkv, Tq, DV), and to
                lse (B, G·Hkv, Tq), which is contiguous and float32; float32 or float16
    …_stride_…  elements from sequence to sequence, head to head, token to token; from column to column it is 1
    scale_log2  scale · log2(e)
    BLOCK_DK …  the powers of two that hold DK and DV; PRECISION is tl.dot's input_precision

    Grid: (⌈G·Tq / BLOCK_M⌉, B·Hkv). Row r of program (x, y) is row R = x·BLOCK_M + r of its key head: query R // G of
    query head h·G + R % G, with h = y % Hkv and sequence y // Hkv. Where CAUSAL, query i sees keys up to i + Tk − Tq.
    A row that sees no key: o = 0, lse = −∞. Tiles that no row of the program sees are not loaded.
    """
    ### BEGIN SOLUTION
    b = tl.program_id(1) // Hkv
    h = tl.program_id(1) % Hkv
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    query = rows // G
    head = h * G + rows % G
    row_exists = rows < G * Tq
    dk = tl.arange(0, BLOCK_DK)
    dv = tl.arange(0, BLOCK_DV)
    q_at = q_ptr + b * q_stride_b + head[:, None] * q_stride_h + query[:, None] * q_stride_t + dk[None, :]
    q = tl.load(q_at, mask=row_exists[:, None] & (dk[None, :] < DK), other=0.0)  # (BLOCK_M, BLOCK_DK)
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    stop = Tk
    if CAUSAL:
        last_query = (tl.program_id(0) * BLOCK_M + BLOCK_M - 1) // G
        stop = tl.minimum(last_query + 1 + Tk - Tq, Tk)
    k_at = k_ptr + b * k_stride_b + h * k_stride_h
    v_at = v_ptr + b * v_stride_b + h * v_stride_h
    for start in range(0, stop, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
        key_exists = keys < Tk
        k_mask = key_exists[:, None] & (dk[None, :] < DK)
        k = tl.load(k_at + keys[:, None] * k_stride_t + dk[None, :], mask=k_mask, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2  # (BLOCK_M, BLOCK_N)
        seen = key_exists[None, :]
        if CAUSAL:
            seen = seen & (keys[None, :] <= query[:, None] + Tk - Tq)
        s = tl.where(seen, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, axis=1))
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s - shift[:, None])
        shrink = tl.exp2(m - shift)
        l = l * shrink + tl.sum(p, axis=1)
        v_mask = key_exists[:, None] & (dv[None, :] < DV)
        v = tl.load(v_at + keys[:, None] * v_stride_t + dv[None, :], mask=v_mask, other=0.0)
        o = o * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        m = m_new
    some = tl.where(l == 0, 1.0, l)
    o_at = o_ptr + b * o_stride_b + head[:, None] * o_stride_h + query[:, None] * o_stride_t + dv[None, :]
    o_mask = row_exists[:, None] & (dv[None, :] < DV)
    tl.store(o_at, (o / some[:, None]).to(o_ptr.dtype.element_ty), mask=o_mask)
    lse = (m + tl.log2(some)) * 0.6931471805599453  # ln 2
    tl.store(lse_ptr + (b * Hkv * G + head) * Tq + query, lse, mask=row_exists)
    ### END SOLUTION


# %% tags=["check"] exercise="04.ragged_groups"
check("04.ragged_groups", ragged_groups)

# %% [markdown]
# That is a FlashAttention that can be used. The library's kernel (read it with `??flash_kernels.flash_forward_kernel`
# after `from llmsys.attention import flash_kernels`) differs from it in three ways, all of them for speed or size:
#
# - **Two loops.** Tiles before the diagonal need no mask, and a mask costs a comparison and a selection for each
#   score. So there is a loop without one, and then a loop with one for the few tiles at the end.
# - **The longest first.** With a causal mask later queries see more keys. Programs start in the order of their
#   numbers, so number 0 is given the *last* tile, and the short ones fill the gaps at the end.
# - **64-bit offsets.** `b * k_stride_b` can exceed $2^{31}$ where a 32-bit product wraps around.
#
# ## What the compiler makes of it
#
# A kernel is fast if enough of it fits on the chip. An H100 has 132 streaming multiprocessors, SMs. Each has 65,536
# registers of 4 bytes and 228 KiB of shared memory, for all programs that run on it at the same time; one program may
# have 227 KiB, and each of its threads 255 registers. <!-- source: CUDA C++ programming guide, technical
# specifications, compute capability 9.0 --> A program with `num_warps=4` is 128 threads. Triton decides what lives
# where:
#
# - **Registers** hold what a program computes: $S$, $P$, $O$, $m$, $\ell$. A tile is dealt out over the threads. $S$
#   of 64 × 64 `float32` on 128 threads is 32 registers each.
# - **Shared memory** holds what the tensor cores read: the tile of $q$, and the tiles of $K$ and $V$. And not one
#   pair of those: with `num_stages=3`, three pairs are in flight, so that the next ones are being copied while one is
#   multiplied.
# - What does not fit into registers **spills**: it is written to memory and read back, in the inner loop. That is
#   what to avoid.
#
# So the shared memory of a program should be, with $e$ bytes an element, $B_m$ queries and $B_n$ keys a tile,
#
# $$ \text{shared} = \big(\, \underbrace{B_m}_{q} + \text{stages} \cdot \underbrace{2\,B_n}_{K \text{ and } V} \big) \cdot D \cdot e \tag{3} $$
#
# Take $B_m = 128$ queries, $B_n = 64$ keys, $D = 64$, `bfloat16`, 3 stages, 4 warps. **How much shared memory will a
# program need, in KiB?**
#
# And the registers? With 128 queries on 128 threads, $S$ takes $B_n$ registers of each thread, $O$ takes $D$, both in
# `float32`, and $P$ in `bfloat16`, two numbers to a register, takes $B_n / 2$. Addresses, masks, $m$ and $\ell$ come
# on top: a few dozen, up to the compiler. What cannot be derived is the exact number; what can is where the limit of 255
# is passed. **Of 32, 64 and 128 keys a tile, which is the most that does not spill?**

# %% tags=["predict"]
predict("04.shared_memory", None, "KiB")

# %% tags=["predict"]
predict("04.keys_without_spills", None, "keys")

# %% [markdown]
# Triton compiles for a *target*, and a target is a name: no GPU is needed to compile for one. A `Recorder` stands in
# the kernel's place, notes the arguments of the launch, and hands them to the compiler. Tensors on torch's `meta`
# device have a shape and no memory. (`wgmma`, in the table, is Hopper's matrix instruction: more of it below.)

# %% tags=["measure"]
from llmsys.attention.flash.forward import flash_attention, launch
from llmsys.attention.flash.kernels import flash_forward_kernel
from llmsys.attention.flash.tiles import TileConfig
from llmsys.hardware.compiler import CompileError, compile_kernels
from llmsys.hardware.launches import Recorder

kernel = mine("ragged_groups", default=flash_forward_kernel)
x = torch.empty(1, 16, 4096, 64, dtype=torch.bfloat16, device="meta")  # (B, H, T, D)
cuts = (64, 64, 4, 2), (64, 64, 4, 3), (128, 32, 4, 3), (128, 64, 4, 3), (128, 128, 4, 3), (128, 128, 8, 3)
configs = [TileConfig(*cut) for cut in cuts]  # queries, keys, warps, stages
recorder = Recorder(kernel, target="sm_90")
for config in configs:
    launch(x, x, x, True, 0.125, "ieee", config, recorder)
compiled = dict(zip(configs, compile_kernels(recorder.builds), strict=True))
print("     tile  warps  stages   by (3)    shared  registers  spills  wgmma  programs an SM")
for c, found in compiled.items():
    if isinstance(found, CompileError):
        raise found
    print(f"{c.block_m:4} × {c.block_n:3} {c.num_warps:5} {c.num_stages:6}", end=" ")
    print(f"{(c.block_m + c.num_stages * 2 * c.block_n) * 64 * 2:10,} {found.shared_bytes:9,}", end=" ")
    print(f"{found.registers:8} {found.spill_bytes:8} {'yes' if found.wgmma else 'no':>7}", end=" ")
    print(f"{found.occupancy().programs:5}, for its {found.occupancy().limit}")

# %% tags=["measure"]
chosen = compiled[TileConfig(128, 64, 4, 3)]
measured("04.shared_memory", chosen.shared_bytes / 1024, "KiB")

# %% tags=["measure"]
on_128_threads = {c.block_n: found for c, found in compiled.items() if (c.block_m, c.num_warps) == (128, 4)}
measured("04.keys_without_spills", max(n for n, found in on_128_threads.items() if not found.spill_bytes), "keys")

# %% [markdown]
# Shared memory is (3), to the byte. The registers of the tiles come to $64 + 64 + 32 = 160$ with 64 keys. The rest is
# addresses, masks, $m$, $\ell$ and room for the compiler to move things: without spills, the printed number is what it
# was free to take, and not what the kernel needs. Yours may print another. (So may the last column. The opening picture,
# of the second row's tile and with the library's kernel, has 528 programs, 4 on each of 132 SMs: that leaves each of their
# 128 threads 128 registers, and a kernel that takes a few more runs three.) With 128 keys, the sum is $128 + 64 + 64 = 256$:
# one more than a thread may have, before anything else. That is why that row spills, and why the next one, on
# twice as many threads, does not.
#
# Now read the code itself. PTX is the assembly language that NVIDIA's compilers meet in. Which of its instructions
# matter here?

# %% tags=["measure"]
ptx = chosen.ptx
for name, what in (
    ("wgmma.mma_async", "matrix products by a warpgroup"),
    ("mma.sync", "matrix products by a single warp"),
    ("ex2.approx", "2 to the x"),
    ("cp.async.cg", "asynchronous copies to shared memory"),
    ("ld.global", "loads that wait"),
):
    print(f"{ptx.count(name):5} {name:16} {what}")
print(next((line.strip()[:110] for line in ptx.splitlines() if "wgmma.mma_async" in line), "no wgmma at all"))

recorder = Recorder(kernel, target="sm_90")
launch(x, x, x, True, 0.125, "ieee", TileConfig(16, 64, 4, 3), recorder)
ptx = compile_kernels(recorder.builds)[0].ptx
print(f"tiles of 16 queries: {ptx.count('wgmma.mma_async')} wgmma.mma_async, {ptx.count('mma.sync')} mma.sync")

# %% [markdown]
# `wgmma` is Hopper's own instruction. Four warps, a *warpgroup*, multiply together, and they read $K$ and $V$
# straight from shared memory. The `m64` in its name is the number of rows: with a tile of 16 queries the compiler has
# to fall back on `mma.sync`, Ampere's instruction, in which each warp feeds the tensor cores from registers. `ex2` is
# your `tl.exp2`. There is no multiplication of its own before it, for a logarithm, because there is none to do.
#
# ## Watch it
#
# Here is one SM that is filled with programs of the library's kernel, for every way of cutting it, all compiled for
# Hopper as above. Step through the tile sizes, and then change the head size, the warps and the stages. Look for
# three things: which resource runs out first; where spills begin; and how few programs are left for the largest
# tiles.

# %% tags=["widget"]
viz.flash_triton.kernel_explorer()

# %% [markdown]
# Is more programs better, then? Not by itself. A larger tile of queries loads $K$ and $V$ fewer times, by lesson 03's
# formula. Several programs on an SM hide each other's waiting: while one multiplies, another computes exponentials.
# The best size is somewhere between, and it is found by trying; `flash_attention(…, autotune=True)` does.
#
# ## Measure
#
# In the interpreter, seconds say nothing about the kernel. Each line of it is a few calls of NumPy on a small tile,
# and the programs run one after another:

# %% tags=["measure"]
shape = (1, 16, 4096, 64) if tier() == "gpu" else (1, 1, 64, 64)
dtype = torch.bfloat16 if tier() == "gpu" else torch.float32
inputs = [tuple(torch.randn(shape, device=triton_device()).to(dtype) for _ in range(3)) for _ in range(2)]
times = interleaved({"flash": partial(flash_attention, kernel=kernel), "sdpa": STAGES["sdpa"]}, inputs, repeats=5)
for name, timing in times.items():
    print(f"{name:6} {timing.median * 1e3:9.3f} ms for {shape[2]} tokens on {triton_device()}")

# %% [markdown]
# On an H100, the library's kernel was measured beside its peers, in one process, on the same inputs, in turn:
# **FA2**, FlashAttention-2 as PyTorch ships it; **cuDNN**, NVIDIA's own; **FlexAttention**, a kernel that PyTorch
# generates in Triton. The shapes have 16k tokens in all, and 2048 = heads × head size.

# %% tags=["measure"]
viz.charts.attention_speed(recorded("attention"), names=("flash", "FlexAttention", "FA2", "cuDNN"))

# %% tags=["claim"]
table = [row for row in recorded("attention").rows if row["sweep"] == "table"]
rate = {(row["name"], row["D"], row["T"], row["causal"]): row["tflops"] for row in table}
peers = [name for name in ("FA2", "cuDNN", "FlexAttention") if any(row["name"] == name for row in table)]
print("  D      T  causal   flash, TFLOP/s" + "".join(f"{'over ' + name:>20}" for name in peers))
for D, T, masked in sorted({key[1:] for key in rate}):
    ours = rate["flash", D, T, masked]
    ratios = (ours / rate.get((name, D, T, masked), float("nan")) for name in peers)
    print(f"{D:3} {T:6} {'yes' if masked else 'no':>7} {ours:16.0f}" + "".join(f"{ratio:20.2f}" for ratio in ratios))

# %% [markdown]
# Ahead of FA2 and FlexAttention in every row, nearly level with cuDNN for heads of 64, and behind it for heads of
# 128. How is that possible in a hundred lines?
#
# FA2 was written for Ampere, and PyTorch compiles it as it is: its products are `mma.sync`, and on an H100 it reaches
# about a third of what the tensor cores can do ([Shah et al., 2024](https://arxiv.org/abs/2407.08608), abstract).
# Triton's compiler knows Hopper, and makes `wgmma` of the same source. FlexAttention comes out of the same compiler,
# by way of a template that has to serve any mask and any function of the scores.
#
# And cuDNN? In our kernel, the tensor cores mostly wait while a program computes its exponentials, unless another
# program on the same SM has a product for them. Set the head size to 128 in the explorer above: $O$ and the tiles
# double, and about half as many programs fit. cuDNN does not rely on neighbours. Some of its warps do nothing but copy, and
# the softmax of one tile overlaps with the products of another by design. That is lesson 06.
#
# A profiler's counters agree. With heads of 128, 16k tokens and no mask, the tensor cores are active 57% of the time in
# our kernel and 75% in cuDNN's, and no other unit is busier than that. <!-- source:
# llmsys/bench/recorded/attention_counters --> Also, the tile
# that was measured has 64 rows of queries, and cuDNN's 128, so that $K$ and $V$ cross from
# L2 more often: at 6.6 TB/s, against 4.7. <!-- source: Nsight Compute on an H100 80GB HBM3, 2026-11-23:
# lts__t_bytes a second 6.63 and 4.72 -->
#
# And time and memory against the number of tokens, for one sequence with 16 heads of 64, beside what came before:

# %% tags=["measure"]
viz.charts.attention_growth(recorded("attention"), names=("naive", "tiled", "flash", "sdpa"))

# %% tags=["claim"]
growth = {(row["name"], row["T"]): row for row in recorded("attention").rows if row["sweep"] == "growth"}
for T in (1024, 4096, 16384):
    print(f"T = {T:,}")
    for name, label in (("naive", "naive"), ("tiled", "tiled, in PyTorch"), ("flash", "flash")):
        row = growth[name, T]
        times = f", {row['ms'] / growth['flash', T]['ms']:4.0f} times as long as flash" if name != "flash" else ""
        print(f"    {label:18} {row['ms']:7.2f} ms, {row['extra_bytes'] / 2**20:9,.2f} MiB extra{times}")

# %% tags=["measure"]
measured("04.one_kernel", growth["tiled", 16384]["ms"] / growth["flash", 16384]["ms"], "×")

# %% [markdown]
# 113 times as fast as the tiles in PyTorch, and 22 times as fast as naive attention. The second is what you gain: the tiles
# in PyTorch save memory, and pay for it with five times naive attention's time. <!-- source: the table above, 261.51 ms
# against 51.44 at 16,384 tokens --> Both, the tiles and the kernel, do what lesson 03 derived, with tiles of other
# sizes and exponents in another base. What the kernel saves is everything between the lines: launches, and tiles
# that travel to HBM and back. The extra memory that is left is the log-sum-exp, 4 bytes a row. (`sdpa`, without a gradient to
# compute, keeps none.)
#
# ## Your kernel in a real model
#
# SmolLM2 has 9 query heads and 3 key heads of 64, so $G = 3$, and ragged ends all the time. In the interpreter a
# token takes seconds, so we let it say only the first few; on a GPU it says the whole sentence. The tiles are chosen
# for the interpreter, too: few programs, whatever their size.

# %% tags=["engine"]
from llmsys.models import generate, load_model


def your_attention(q, k, v, **options):
    few = TileConfig(16 if q.shape[2] == 1 else 128, 64, 4, 1)
    return flash_attention(q, k, v, kernel=kernel, tiles=None if tier() == "gpu" else few, **options)


model = load_model(device=triton_device())
question = "Why is the sky blue? Answer in one sentence."
new_tokens = 32 if tier() == "gpu" else 4
yours = generate(model, question, attention=your_attention, cache=True, max_new_tokens=new_tokens)
print(yours.text)

# %% tags=["engine", "claim"]
torchs = generate(model, question, attention="sdpa", max_new_tokens=new_tokens)
print("your kernel chooses the same tokens as torch's fused attention:", yours.tokens == torchs.tokens)

# %% [markdown]
# ## What production does differently
#
# - **FlashAttention-2** has your outer loop as `compute_attn_1rowblock` in `csrc/flash_attn/src/flash_fwd_kernel.h`.
#   It walks the keys from the last tile to the first: `n_masking_steps` iterations with a mask come first, all others
#   have none. Head sizes, causality and evenness are template parameters, as our constexprs are, so that one function
#   becomes hundreds of kernels.
# - **Triton's own tutorial**, `06-fused-attention.py`, splits a causal kernel by a constexpr `STAGE`: off the
#   diagonal, and on it.
# - **FlexAttention** (`torch.nn.attention.flex_attention`) takes the mask as a Python function. `create_block_mask`
#   works out for each tile what the map above shows: skipped, partial, full. Its kernel is a template,
#   `torch/_inductor/kernel/flex/templates/flex_attention.py.jinja`, into which your function is compiled, and only
#   partial tiles call it.
# - **vLLM**'s Triton backend is `vllm/v1/attention/ops/triton_unified_attention.py`, one kernel for prompts and
#   decoding. It packs the query heads of a group into the rows of a tile as you did, and finds its keys through a
#   table of pages: lesson 08.
# - **FlashAttention-3** and cuDNN divide the warps into producers and consumers, and copy with the Tensor Memory
#   Accelerator: lesson 06.
#
# ## Do you have it?
#
# <details><summary><b>1.</b> You double the queries of a tile, and then, instead, the keys. What happens each time to the bytes from HBM, to shared memory, and to the registers of a thread?</summary>
#
# Twice the queries: K and V are loaded half as often. Shared memory grows by one tile of q. S, P and O double, and
# registers with them. Twice the keys: the bytes stay as they are. Shared memory nearly doubles, by the stages' K and
# V. S and P double, O does not.
# </details>
#
# <details><summary><b>2.</b> One sequence is decoded, one query at a time, with 3 key heads and 100,000 keys. How many programs does your kernel start on the 132 SMs of an H100, and what could be done?</summary>
#
# Three: one for each key head, since the G rows of the query fit in one tile. 129 SMs have nothing to do while three
# walk over 100,000 keys each. The keys can be split among more programs, whose results are merged by their
# log-sum-exps. That is lesson 08's kernel.
# </details>
#
# <details><summary><b>3.</b> A test compares your kernel with the definition for T = 1, 64, 128 and 1000, not causal, contiguous, in float16, and passes. Name two of this lesson's mistakes
# that it cannot find.</summary>
#
# Rows without a key: they need causality and more queries than keys. A stride taken for D: contiguous tensors have
# stride D. (And a store without a mask, if nothing important lies behind o.) A test finds what it draws: lengths of q
# and k apart, gaps between tokens, NaN where nothing should be read.
# </details>
#
# **Next:** lesson 05, the backward pass, which begins with the log-sum-exp that you have stored.
