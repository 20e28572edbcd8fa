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
# # 02 · Online softmax
#
# A softmax wants the whole row before it gives away a single weight: the largest element may be the last one. Yet
# FlashAttention computes attention over rows that never exist in memory, a tile at a time, and gets the same
# answer. This lesson is about the one idea that makes that possible.
#
# **The idea:** all that has to be remembered of the part of a row that has gone by is *two numbers*, and two such pairs
# can be merged, in any order.
#
# You will break softmax, repair it, cut its memory traffic by a quarter, write your first Triton kernel, and let a real
# language model talk through your code.

# %% tags=["setup"]
import random

import torch

from llmsys import viz
from llmsys.attention import online
from llmsys.bench import interleaved, recorded
from llmsys.course import check, hint, measured, mine, predict
from llmsys.hardware import sanitizer
from llmsys.hardware.meters import reads_of
from llmsys.hardware.tier import load_triton, tier, triton_device

if tier() != "pytorch":  # Triton decides when it is first imported whether it interprets: so, before anything else
    load_triton()

# %%
viz.online_softmax.overview()

# %% [markdown]
# ## Predict: where does the exponential end?
#
# The softmax of a row $x$ of $N$ numbers is
#
# $$ y_i = \frac{e^{x_i}}{\sum_{j=1}^{N} e^{x_j}} \tag{1} $$
#
# The exponential grows fast and number formats end. The largest number of `float16` is 65,504; `float32` and `bfloat16`
# reach about $3.4 \cdot 10^{38}$. <!-- source: IEEE 754-2019, table 3.5; bfloat16 has float32's exponent range --> A
# logit of 20 is nothing special in a language model. So: **from which $x$ on is $e^x$ infinite?** Write down your guesses
# in place of `None` (rough ones are fine: $e \approx 2.7$, and no calculator) and run the cells.

# %% tags=["predict"]
predict("02.overflow_fp16", None)

# %% tags=["predict"]
predict("02.overflow_fp32", None)

# %% [markdown]
# Now let the machine say. Of each format, the cell wants the last number whose exponential is still finite, and the next one, whose
# exponential is not. It halves an interval between a finite and an infinite end until there is no number left between them.

# %% tags=["measure", "claim"]
def last_finite(dtype):
    """The largest x of this dtype for which e^x is finite, and the next number of the dtype."""
    low, high = torch.tensor(1.0, dtype=dtype), torch.tensor(200.0, dtype=dtype)  # finite, infinite
    while True:
        middle = ((low.double() + high.double()) / 2).to(dtype)
        if middle == low or middle == high:
            return low.item(), high.item()
        low, high = (middle, high) if torch.exp(middle).isfinite() else (low, middle)


for dtype in (torch.float16, torch.bfloat16, torch.float32):
    last, first_infinite = last_finite(dtype)
    print(f"{str(dtype):15} e^{last:.9g} is finite, e^{first_infinite:.9g} is inf")

# %% tags=["measure"]
measured("02.overflow_fp16", last_finite(torch.float16)[0])

# %% tags=["measure"]
measured("02.overflow_fp32", last_finite(torch.float32)[0])

# %%
viz.online_softmax.exp_overflow()

# %% [markdown]
# The logarithm of the largest number is the border: about 11 for `float16`, between 88 and 89 for the other two. (The box of a
# format ends there; on the left it ends where $e^x$ becomes 0, below about $-104$ in `float32`.) What does a
# softmax do beyond it? Equation (1) breaks at both ends, and differently:

# %% tags=["claim"]
def softmax_as_written(x):
    return torch.exp(x) / torch.exp(x).sum()


print("too large:", softmax_as_written(torch.tensor([9.0, 10.0, 12.0], dtype=torch.float16)))
print("too small:", softmax_as_written(torch.tensor([-120.0, -119.0, -118.0])))

# %% [markdown]
# Too large, and one term is infinite: $\infty / \infty$ is NaN, and $e^{10} / \infty$ is a confident, wrong zero. Too small, and
# every term has vanished: $0/0$. Both rows have a perfectly ordinary answer, for the differences between their elements are small.
#
# ## The idea: only differences matter
#
# Multiply the numerator and the denominator of (1) by the same $e^{-c}$. Nothing changes, whatever $c$ is:
#
# $$ y_i = \frac{e^{x_i}\,e^{-c}}{\sum_j e^{x_j}\,e^{-c}} = \frac{e^{x_i - c}}{\sum_j e^{x_j - c}} \tag{2} $$
#
# So we may choose $c$, and the row's maximum is the choice that cannot fail:
#
# $$ m = \max_j x_j \qquad \ell = \sum_j e^{x_j - m} \qquad y_i = \frac{e^{x_i - m}}{\ell} \tag{3} $$
#
# Every exponent is now at most 0, so every term is between 0 and 1: nothing overflows. The largest element contributes
# exactly $e^0 = 1$, so $1 \le \ell \le N$: nothing is divided by zero. A term that is so small that it vanishes would not have
# changed a sum that is at least 1. This is the **safe softmax**, and every library has it.
#
# It has a price. The three parts of (3) depend on each other: $\ell$ needs $m$, and $y$ needs $\ell$. Each is a loop over the
# whole row. That is no matter if the row stays close to the arithmetic, but rows are long: the logits over Llama 3's vocabulary are
# 128,256 numbers, 501 KiB in `float32`, and of the 256 KiB of SRAM that each of an H100's 132 multiprocessors has, a kernel may
# take 227 to work in, room for 58,112 such numbers. <!-- source: Llama 3, https://arxiv.org/abs/2407.21783, section 3.2; CUDA C++ programming guide, compute capability 9.0 -->
# So the row is read from the big memory behind it, a **tile** at a time; and once per loop.
#
# ## Exercise (a): safe softmax, in three passes (15 minutes)
#
# Write (3) for a row that is too long to hold. You may load `tile` columns of `x` at a time, which in PyTorch is
#
# ```python
# part = x[..., start : start + tile].clone()
# ```
#
# The slice alone is only a view; the *copy* stands for the tile on the chip. Making it reads `x` once, and whatever you then do with
# `part` is free. What you keep from one tile to the next may have one number a row (or a few), and the only long thing that
# you make is the result. Three loops. Rows have any length: the last tile may be a short one (a slice that reaches beyond the
# end is simply shorter).

# %% tags=["exercise"] exercise="02.safe_softmax"
import torch


def safe_softmax(x, tile):
    """Softmax over the last dimension, in three passes over x.

    x       (..., N)  float tensor, N at least 1
    tile    int       how many columns may be loaded at a time, as x[..., start : start + tile].clone()

    Returns y (..., N), of x's dtype.
    Not allowed: torch's softmax, log_softmax and logsumexp; any tensor longer than a tile, other than y.
    """
    ### BEGIN SOLUTION
    N = x.shape[-1]
    starts = range(0, N, tile)
    m = x.new_full(x.shape[:-1], float("-inf"))  # (...)
    for start in starts:  # pass 1: the maximum
        m = torch.maximum(m, x[..., start : start + tile].amax(dim=-1))
    l = torch.zeros_like(m)  # (...)
    for start in starts:  # pass 2: the denominator
        l = l + torch.exp(x[..., start : start + tile] - m[..., None]).sum(dim=-1)
    y = torch.empty_like(x)
    for start in starts:  # pass 3: the result
        y[..., start : start + tile] = torch.exp(x[..., start : start + tile] - m[..., None]) / l[..., None]
    return y
    ### END SOLUTION


# %% tags=["check"] exercise="02.safe_softmax"
check("02.safe_softmax", safe_softmax)

# %% [markdown]
# Stuck? `hint("02.safe_softmax")` in a cell of your own gives the next of three hints: a nudge, the invariant, then
# pseudocode.
#
# How does the check know how often you read `x`? It watches: `reads_of` sees every operation of torch that reads
# `x`'s memory and counts the elements. You can use it, too. (`mine` fetches your answer once it has passed, and the library's
# own until then.)

# %% tags=["claim"]
x = torch.randn(4, 1000)
with reads_of(x) as reads:
    mine("safe_softmax", default=online.safe_softmax)(x, tile=64)
print(f"safe softmax read {reads.elements} elements of a tensor that has {x.numel()}: {reads.passes:g} passes")

# %% [markdown]
# ## What must be remembered of a tile?
#
# Can we do with fewer? The trouble is that the sum $\ell$ is taken *under* the maximum $m$, and $m$ is known only at the end
# of the row. Suppose we do not wait. We read the first tile, compute its own maximum and its own sum,
#
# $$ m_1 = \max_{j \in \text{tile 1}} x_j \qquad \ell_1 = \sum_{j \in \text{tile 1}} e^{x_j - m_1} $$
#
# and let the tile go. Then the second tile arrives, with an $m_2$ and $\ell_2$ of its own. The maximum of both is
# $m = \max(m_1, m_2)$. But $\ell_1$ was taken under $m_1$, and the elements that it was made of are gone! Look closer: they are all
# wrong *by the same factor*, and a common factor comes out of the sum:
#
# $$ \sum_{j \in \text{tile 1}} e^{x_j - m} = \sum_{j \in \text{tile 1}} e^{x_j - m_1}\, e^{m_1 - m} = \ell_1\, e^{m_1 - m} $$
#
# So the pair $(m_1, \ell_1)$ is everything that ever has to be known of the first tile. The two pairs **merge**:
#
# $$ (m_1, \ell_1) \oplus (m_2, \ell_2) = \big(m,\;\; \ell_1\, e^{m_1 - m} + \ell_2\, e^{m_2 - m}\big), \qquad m = \max(m_1, m_2) \tag{4} $$
#
# One of the two exponents is 0, so one sum stays as it is, and the other one shrinks to the larger maximum. Neither can overflow.
#
# Operation (4) is associative and commutative, because it computes the same thing, the summary of all the elements
# together, however they are grouped. And it has an identity, the summary of *nothing*: a maximum of $-\infty$ and an empty
# sum, $(-\infty, 0)$. Mathematicians call that a **commutative monoid**; for us it means that the tiles may come in any
# order, from any number of processors. (Watch the identity when you write it: for a computer $-\infty - (-\infty)$
# is not 0. Pieces of a row with nothing in them do occur: a causal mask hides whole tiles from a query.)
#
# ## Exercise (b): merge (20 minutes)
#
# Write (4). The summaries are pairs `(m, l)` of tensors of the same shape, one number a row; a row of `a` goes with the same row of
# `b`. Any of them may be the identity. Make no NaN of your own; but one that is handed to you must go through, for it says that something
# has gone wrong before.

# %% tags=["exercise"] exercise="02.merge"
import torch


def merge(a, b):
    """Merge the summaries of two pieces of each row (equation 4).

    a, b    pairs (m, l) of float tensors, all of one shape (...): the maximum, and the sum of e^(x - m).
            The summary of nothing is (-inf, 0).

    Returns the pair (m, l) of both pieces together, of their dtype. NaN only in the rows where a or b has one.
    Not allowed: torch.logsumexp, torch.logaddexp.
    """
    ### BEGIN SOLUTION
    (m1, l1), (m2, l2) = a, b
    m = torch.maximum(m1, m2)
    # Two identities: -inf - (-inf) would be NaN. Any finite number will do for m there: e^(-inf - 0) = 0.
    finite = torch.where(m == float("-inf"), torch.zeros_like(m), m)
    return m, l1 * torch.exp(m1 - finite) + l2 * torch.exp(m2 - finite)
    ### END SOLUTION


# %% tags=["check"] exercise="02.merge"
check("02.merge", merge)

# %% [markdown]
# Does it really not matter in which order the tiles are merged? Let us not believe it. Cut a row into 32 tiles, summarise
# each, then pick any two summaries, merge them, put the result back, and so on until one is left: a random tree. A thousand
# random trees:

# %% tags=["claim"]
merge_in_use = mine("merge", default=online.merge)


def root_of_a_random_tree(parts, rng):
    parts = list(parts)
    while len(parts) > 1:
        a = parts.pop(rng.randrange(len(parts)))
        b = parts.pop(rng.randrange(len(parts)))
        parts.append(merge_in_use(a, b))
    return parts[0]


row = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 20
parts = [online.summarize(tile) for tile in row.split(32)]
whole = online.summarize(row)
rng = random.Random(0)
roots = [root_of_a_random_tree(parts, rng) for _ in range(1000)]
print("every tree has the same maximum:     ", all(torch.equal(m, whole.m) for m, _ in roots))
print("every tree's sum is right to 1e-6:   ", all(abs(l / whole.l - 1) < 1e-6 for _, l in roots))

# %% [markdown]
# The maxima are equal to the last bit, since a maximum does not round. The sums agree up to rounding, which does depend on the
# order: "the same" always means that in floating point.
#
# ## Watch it
#
# Both steppers run *your* `merge`, once it has passed, and the library's until then. Step through a row with the buttons (or
# focus the slider and use the arrow keys). The coloured stack is $\ell$: each element adds its
# $e^{x_j - m}$ on top, and whenever a new maximum comes, everything below shrinks by the same factor. Try the orders:
# *ascending* is the worst there is, *descending* the best. Then type in a row of your own and try to make $\ell$ smaller
# than 1.

# %% tags=["widget"]
viz.online_softmax.stepper(merge=merge_in_use)

# %% [markdown]
# The second stepper merges tiles as a tree. The order changes the way, not the root.

# %% tags=["widget"]
viz.online_softmax.merge_tree(merge=merge_in_use)

# %% [markdown]
# ## Predict: how often does the maximum rise?
#
# Each time the maximum rises, what has been summed must be rescaled. In the worst order that is at every element. And in a **random**
# order: of 1,000 elements, how many set a new record? (The first one counts. Say a number before you think about it for long;
# then think.)

# %% tags=["predict"]
predict("02.rescalings", None, "records")

# %% tags=["measure", "claim"]
def records(row):
    """How often the running maximum rises along the last dimension, the first element included."""
    running = torch.cummax(row, dim=-1).values
    return 1 + (running[..., 1:] > running[..., :-1]).sum(dim=-1)


rows = torch.rand(4000, 1000, generator=torch.Generator().manual_seed(0))
average = records(rows).double().mean().item()
harmonic = sum(1 / i for i in range(1, 1001))
print(f"measured over {len(rows)} random rows: {average:.2f};  1 + 1/2 + … + 1/1000 = {harmonic:.2f}")

# %% tags=["measure"]
measured("02.rescalings", average, "records")

# %% [markdown]
# The $i$-th element is the largest of the first $i$ with probability $1/i$, so the expected number of records is the harmonic
# sum, which grows like $\ln N$: 7.49 for a thousand elements, and only about 14.39 for a
# million. <!-- source: harmonic numbers, H_n = ln n + 0.5772 + …; H_1000000 = 14.3927 --> There is one rescaling fewer than
# records, because before the first one there is nothing to rescale: the stepper above counts those. Rescaling is rare.
#
# ## Exercise (c): softmax in two passes (20 minutes)
#
# Put it together. Start with the summary of nothing. For each tile, compute its own summary and merge it in: after one pass over
# the row, you hold its $(m, \ell)$. Programmers call that a **fold**. The second pass writes $y$ by (3), each tile once and for good:
# whatever comes back to $y$ is another pass.
#
# With tiles of a single element, whose summary is $(x_i, 1)$, (4) becomes the recurrence by which online softmax is usually introduced:
#
# $$ m_i = \max(m_{i-1}, x_i) \qquad \ell_i = \ell_{i-1}\, e^{m_{i-1} - m_i} + e^{x_i - m_i} \tag{5} $$
#
# ([Milakov and Gimelshein, 2018](https://arxiv.org/abs/1805.02867)). Your `merge` from above may be used once its check has passed:
# `from mine import merge`. The cell imports the library's, which does the same.

# %% tags=["exercise"] exercise="02.online_softmax"
import torch

from llmsys.attention.online import merge


def online_softmax(x, tile):
    """Softmax over the last dimension, in two passes over x: fold `merge` over the tiles, then write.

    x       (..., N)  float tensor, N at least 1; -inf may occur, a whole tile of it too
    tile    int       how many columns may be loaded at a time, as x[..., start : start + tile].clone()

    Returns y (..., N), of x's dtype. Every row has at least one finite element.
    Not allowed: torch's softmax, log_softmax and logsumexp; any tensor longer than a tile, other than y.
    """
    ### BEGIN SOLUTION
    N = x.shape[-1]
    starts = range(0, N, tile)
    m = x.new_full(x.shape[:-1], float("-inf"))  # (...)
    l = torch.zeros_like(m)  # (...)
    for start in starts:  # pass 1: fold merge over the tiles' summaries
        part = x[..., start : start + tile].clone()  # loaded once, used twice
        m_part = part.amax(dim=-1)
        finite = torch.where(m_part == float("-inf"), torch.zeros_like(m_part), m_part)
        m, l = merge((m, l), (m_part, torch.exp(part - finite[..., None]).sum(dim=-1)))
    y = torch.empty_like(x)
    for start in starts:  # pass 2: the result
        y[..., start : start + tile] = torch.exp(x[..., start : start + tile] - m[..., None]) / l[..., None]
    return y
    ### END SOLUTION


# %% tags=["check"] exercise="02.online_softmax"
check("02.online_softmax", online_softmax)

# %% [markdown]
# ### Count the passes
#
# Each pass reads the row from memory, and the last one also writes it. Per element that is 3 reads and 1 write before, 2 reads and 1
# write now: 4 transfers have become 3.

# %% tags=["claim"]
safe = mine("safe_softmax", default=online.safe_softmax)
two_pass = mine("online_softmax", default=online.online_softmax)
passes = {}
for name, softmax in (("safe softmax", safe), ("online softmax", two_pass)):
    with reads_of(x) as reads:
        softmax(x, tile=64)
    passes[name] = reads.passes
    print(f"{name:15} reads each element {reads.passes:g} times and writes it once: {reads.passes + 1:g} transfers")

# %%
viz.online_softmax.passes(passes)

# %% [markdown]
# Three passes became two, not one: the weights can only be written when $\ell$ is complete, so the row is needed once more. The
# *last* pass disappears in lesson 03, where nobody asks for the weights themselves but for a sum weighted by them. That sum is a
# second $\ell$, and can be rescaled along with the first.
#
# ## A first Triton kernel
#
# A kernel in Triton says what **one program** does, and is launched as many of them, side by side; here, one for each row. A program
# is told which one it is (`tl.program_id(0)`), computes the addresses of the elements it wants (a *pointer* to the first element of the tensor, plus offsets), loads a whole
# tile of them at once, calculates, and stores. Here is a complete one: the maximum of each row.

# %%
triton, tl = load_triton()


@triton.jit
def row_max_kernel(x_ptr, m_ptr, x_row_stride, n_cols, BLOCK: tl.constexpr):
    row = tl.program_id(0)  # which of the launched programs am I? I take that row
    m = float("-inf")
    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)  # (BLOCK,) column numbers: start, start + 1, …
        x = tl.load(x_ptr + row * x_row_stride + cols, mask=cols < n_cols, other=float("-inf"))  # (BLOCK,)
        m = tl.maximum(m, tl.max(x, axis=0))
    tl.store(m_ptr + row, m)


x = torch.randn(3, 37, device=triton_device())
m = torch.full((3,), float("nan"), device=x.device)
row_max_kernel[(3,)](x, m, x.stride(0), 37, BLOCK=16)
torch.equal(m, x.amax(dim=1))

# %% [markdown]
# Four things to see:
#
# - `row_max_kernel[(3,)](…)` launches three programs. A tensor that is passed arrives as a pointer to its first element, and
#   `row * x_row_stride` is how far it is to row `row`.
# - `BLOCK` is a `tl.constexpr`: known when the kernel is compiled, and a power of two, because `tl.arange` wants that.
# - A row of 37 columns and tiles of 16: the third tile has 5 columns that exist and 11 that do not. The **mask**
#   says which **lanes**, the places of a tile, may load. A masked lane gets the value of `other`, and it has to be one that does no
#   harm to what comes next. For a maximum, that is $-\infty$.
# - If there is no GPU here, this has run in Triton's **interpreter**, on the CPU, one program after another. It is the same kernel.
#
# What if the mask is forgotten? On a GPU, the lanes beyond the end read whatever comes next in memory, here the following row, and nobody
# notices, until one day the page behind it does not exist. The interpreter would not notice, either. So we run it under a **sanitizer**, which knows every tensor's
# first and last byte:

# %%
@triton.jit
def careless_max_kernel(x_ptr, m_ptr, x_row_stride, n_cols, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    m = float("-inf")
    for start in range(0, n_cols, BLOCK):
        x = tl.load(x_ptr + row * x_row_stride + start + tl.arange(0, BLOCK))  # no mask
        m = tl.maximum(m, tl.max(x, axis=0))
    tl.store(m_ptr + row, m)


if sanitizer.available():
    with sanitizer.watch(x=x, m=m) as report:
        careless_max_kernel[(3,)](x, m, x.stride(0), 37, BLOCK=16)
    print(report)
else:
    print("The sanitizer watches the interpreter: set TRITON_INTERPRET=1 before the kernel starts to see it.")

# %% [markdown]
# Only the last row's program read beyond the *tensor*; the programs before it read their neighbours' rows, which is legal, and wrong. A sanitizer
# finds the crime against memory, not the wrong answer. That is why the check below looks at both, and also counts the bytes.
#
# ## Exercise (d): a row softmax in Triton (40 minutes)
#
# Now the softmax. One program a row, two loops over the tiles of that row: the first one folds (4) over them, the second one writes
# $y$. Inside a program, `m` and `l` are single numbers. What you need: `tl.load`, `tl.store` (it takes a `mask`, too), `tl.maximum`,
# `tl.max(…, axis=0)`, `tl.sum(…, axis=0)`, `tl.exp`. The sum belongs in float32, also for float16 rows, and `tl.exp` takes nothing
# narrower: `tl.max` of float16 gives float32, so that $x - m$ is float32, too; or write `tl.load(…).to(tl.float32)`.
#
# The argument list is fixed: it is the one of the library's kernel, and the library's launcher will call yours.

# %% tags=["exercise"] exercise="02.softmax_kernel"
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def softmax_kernel(x_ptr, y_ptr, x_row_stride, y_row_stride, n_cols, BLOCK: tl.constexpr):
    """Softmax of one row: y[row, :] = softmax(x[row, :]).

    x_ptr, y_ptr                  pointers to x and y, both (rows, n_cols), float32 or float16; x is finite
    x_row_stride, y_row_stride    elements from one row to the next; they may differ, and exceed n_cols
    n_cols                        columns in a row, at least 1
    BLOCK                         columns in a tile: a power of two

    Returns nothing, stores y. One program a row; two loops over its tiles.
    Not allowed: tl.softmax; a third loop.
    """
    ### BEGIN SOLUTION
    row = tl.program_id(0)
    x_row = x_ptr + row * x_row_stride
    y_row = y_ptr + row * y_row_stride
    m = float("-inf")
    l = 0.0
    for start in range(0, n_cols, BLOCK):  # pass 1: m and l
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(x_row + cols, mask=cols < n_cols, other=float("-inf")).to(tl.float32)  # (BLOCK,)
        m_new = tl.maximum(m, tl.max(x, axis=0))
        l = l * tl.exp(m - m_new) + tl.sum(tl.exp(x - m_new), axis=0)
        m = m_new
    for start in range(0, n_cols, BLOCK):  # pass 2: y
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(x_row + cols, mask=cols < n_cols, other=float("-inf")).to(tl.float32)
        tl.store(y_row + cols, tl.exp(x - m) / l, mask=cols < n_cols)
    ### END SOLUTION


# %% tags=["check"] exercise="02.softmax_kernel"
check("02.softmax_kernel", softmax_kernel)

# %% [markdown]
# ## Measure: what is a pass worth?
#
# Three passes and two do the same arithmetic: two exponentials an element. On an H100, both were run as Triton kernels on rows of a million columns, 4 MiB in `float32`, far too long for a multiprocessor to hold. <!-- source: 2^20 columns of 4 bytes -->
# **How many times as fast as three passes are two?**

# %% tags=["predict"]
predict("02.two_passes_speedup", None, "×")

# %% tags=["claim"]
long_rows = [row for row in recorded("softmax").rows if row["cols"] == 1 << 20 and row["dtype"] == "float32"]
for row in long_rows:
    print(f"{row['name']:13} {row['ms']:.2f} ms, {row['ratio']:.2f} of the speed of a copy")

# %% tags=["measure"]
ms = {row["name"]: row["ms"] for row in long_rows}
measured("02.two_passes_speedup", ms["three passes"] / ms["two passes"], "×")

# %% [markdown]
# 4/3, but for a percent: a GPU has arithmetic to spare, and the transfers are all that takes time. And here? Both of your loops are PyTorch on the
# CPU. There an exponential takes longer than to read a number, and each `merge` is about ten small operations more. The row has $2^{21}$
# columns, a tile $2^{18}$:

# %% tags=["measure"]
long_row = torch.randn(1, 1 << 21)  # 8 MiB
times = interleaved(
    {"three passes": lambda: safe(long_row, 1 << 18), "two passes": lambda: two_pass(long_row, 1 << 18)}, repeats=5
)
print(f"two passes are {times['three passes'].median / times['two passes'].median:.2f} times as fast as three, here and now")

# %% [markdown]
# Expect something around 1, now above it and now below. What is saved is the cheapest part, and each tile has its fixed costs, so that small tiles
# lose outright (try `1 << 12`). Counting transfers predicts a time only where transfers are what takes the time.
#
# Back to the H100. **Left:** rows of 256 to 131,072 columns. The dashed line is a plain copy of the tensor, which no softmax can beat, for it also
# reads everything once and writes everything once. *llmsys* is the library's kernel: yours, with a single
# tile for a row of up to 32,768 columns, and with tiles of 32,768 for a longer one.
# *torch.softmax* is PyTorch's own kernel, *torch.compile* the one that PyTorch's compiler generates, in Triton, too. **Right:** two passes
# and three, over the rows of a million columns that you have just seen.

# %% tags=["measure"]
viz.online_softmax.bandwidth(recorded("softmax"))

# %% [markdown]
# Where a row is short enough to stay on the chip (58,112 numbers of `float32` would fill all of a multiprocessor's 227 KiB), the second pass finds it
# there, and softmax can be nearly as fast as a copy. Beyond that, the further reads show; and by how much tells how many there are. A copy makes
# 2 transfers. Two passes make 3, so that with every read from memory they get to 2/3 = 0.67 of a copy's speed; three passes make 4, and get to
# 2/4. <!-- source: CUDA C++ programming guide, compute capability 9.0: 227 KiB = 58,112 · 4 bytes --> That is what the million columns have shown.
# At the right end of the left panel:

# %% tags=["measure", "claim"]
longest = [row for row in recorded("softmax").rows if row["cols"] == 131_072 and row["dtype"] == "float32"]
for row in sorted(longest, key=lambda row: -row["ratio"]):
    print(f"{row['name']:15} {row['ratio']:.2f} of the copy's speed")

# %% [markdown]
# So torch.softmax reads such a row three times, and the other two read it twice. But 0.69 is a little *more* than 2/3. A row has 512 KiB here, and
# 132 multiprocessors work on as many rows or more at a time, 66 MiB of them. The H100's L2 cache holds 50 MiB, so that the second pass may still
# find a part of its row there. <!-- source: 132 · 512 KiB = 66 MiB; NVIDIA H100 architecture white paper --> Over rows of 4 MiB it does not.
#
# In between, bytes do not explain everything. torch.softmax zigzags because PyTorch changes its kernel with the length of the row (the names are
# further down). torch.compile's falls away from the copy at 32,768 columns already, where a row alone does not
# fill a multiprocessor. And our own line dips at 16,384 columns although it is the same kernel as at 8,192, and the compiler reports
# nothing amiss. <!-- source: hardware.compiler on softmax_kernel, sm_90, num_warps=32: 30 and 31 registers a thread, no spill, occupancy 2 -->
# A count of bytes says how fast a kernel can be; why it is not takes a profiler.

# %% [markdown]
# ## Your softmax in a real model
#
# Attention is where a language model keeps its softmax. `attention_with` builds naive attention around any softmax over the last
# dimension; so SmolLM2, a real model of 135 million parameters, can
# run on the softmax that you have written. It must say the same thing as with torch's, to the letter.

# %% tags=["engine"]
from llmsys.attention.naive import attention_with
from llmsys.models import generate, load_model

model = load_model()
question = "What is the softmax function good for? Answer in one sentence."
your_attention = attention_with(lambda scores: two_pass(scores, tile=16))

yours = generate(model, question, attention=your_attention, cache=True, max_new_tokens=24)
print(yours.text)

# %% tags=["engine", "claim"]
torchs = generate(model, question, attention="sdpa", max_new_tokens=24)
one_pass = generate(model, question, attention="online", max_new_tokens=24)
print("your softmax chooses the same tokens as torch's fused attention:", yours.tokens == torchs.tokens)
print("so does attention in a single pass, stage 'online':             ", one_pass.tokens == torchs.tokens)

# %% [markdown]
# The same tokens, and so the same words, which are wrong, by the way: softmax is no optimization algorithm, and it reduces no complexity. With 135 million
# parameters, a model knows how an explanation sounds. What your code owes it is to change nothing.
#
# The second line is a look ahead: `online.online_attention` (read it with `??online.online_attention` in a cell of your own)
# carries the weighted sum of the values along with $\ell$ and reads the keys and the values once. It is slow, a key at a time. The next
# lessons make it fast.
#
# ## What production does differently
#
# - **PyTorch** chooses its kernel by the length of the row: up to 1,024 columns, `softmax_warp_forward` keeps it in the registers of one warp;
#   then `cunn_SoftMaxForwardReg` keeps it in those of a whole block, or `cunn_SoftMaxForwardSmem` in shared memory, if it fits;
#   `cunn_SoftMaxForward` loops over it three times
#   ([SoftMax.cu](https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/cuda/SoftMax.cu)). Keeping beats any number of passes, if
#   you can. The library's kernel comes close to it: with a tile as long as the row, the second pass reads what is still in the cache next to it.
# - **FlashAttention** has (4) in its inner loop: `Softmax::softmax_rescale_o` in `csrc/flash_attn/src/softmax.h`. It computes
#   $2^x$ instead of $e^x$, since that is what the hardware has, and folds the $\log_2 e$ into the scale.
# - **FlashAttention-4** makes rescaling rarer still. By (2), *any* $c$ gives the same softmax, and one not far below the maximum does not
#   overflow either. So it keeps the $c$ that it has until the maximum exceeds it by more than a threshold, a factor of $2^8 = 256$ in the
#   terms; only then $c$ becomes the
#   maximum. <!-- source: github.com/Dao-AILab/flash-attention, flash_attn/cute/softmax.py, SoftmaxSm100.update_row_max, and flash_fwd_sm100.py: rescale_threshold 8.0, in powers of two, for 16-bit q -->
#   Nothing has to be made up for in the end: numerator and denominator are under the same $c$
#   ([`SoftmaxSm100.update_row_max`](https://github.com/Dao-AILab/flash-attention/blob/main/flash_attn/cute/softmax.py)).
# - Two *finished* results can be merged as well: keep the **log-sum-exp** $\mathrm{lse} = m + \ln \ell$ with each. It is called
#   `merge_state` in FlashInfer and `merge_attn_states` in vLLM, which use it to split long keys over many processors and to share prefixes
#   between requests; ring attention does it between GPUs.
# - The idea is due to [Milakov and Gimelshein, 2018](https://arxiv.org/abs/1805.02867), for softmax;
#   [Rabe and Staats, 2021](https://arxiv.org/abs/2112.05682), took it into attention, and
#   [FlashAttention, 2022](https://arxiv.org/abs/2205.14135), into tiles on a GPU.
#
# ## Do you have it?
#
# <details><summary><b>1.</b> Two processors summarise the halves of a row: (m, ℓ) = (5, 2) and (3, 4). What is the summary of the whole row, and what weight
# does an element x = 5 of the first half get?</summary>
#
# m = 5 and ℓ = 2 + 4·e⁻² ≈ 2.54. <!-- source: 4·e^-2 = 0.541 --> The weight is e⁰/ℓ ≈ 0.39. <!-- source: 1/2.541 = 0.3935 -->
# </details>
#
# <details><summary><b>2.</b> Why is the identity (−∞, 0), and not (0, 0)? Name a row for which it matters.</summary>
#
# With (0, 0), the maximum could never fall below 0: for a row of −200s the sum would be taken under 0, every term would vanish in
# float32, and y would be 0/0. The maximum of nothing has to lose against everything.
# </details>
#
# <details><summary><b>3.</b> A colleague sums with plain exponentials and no maximum, in bfloat16, "because bfloat16 has the range of float32". Up
# to which logit does that work, and what would you object to apart from overflow?</summary>
#
# Up to about 88, as for float32 (the table at the top), as long as the sum over the row stays finite, too. And bfloat16 has 8 bits of
# precision: once the sum is 256 times a term, adding the term changes nothing. Sums belong in float32.
# </details>
#
# **Next:** lesson 03, tiled attention, where the last pass disappears.
