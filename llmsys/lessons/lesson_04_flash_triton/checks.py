"""The checks of lesson 04, FlashAttention in Triton. Kernels are launched by the library's own launchers.

While it is watched, a program takes Triton's interpreter about 20 ms, and each further step of its loop 10. So a
kernel's shapes are as small as the property allows: tiles of 16, and one or two of them.
"""

import math

import torch
from torch import Tensor

from llmsys.attention.flash.forward import TileConfig, flash_attention
from llmsys.attention.naive import naive_attention
from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.hardware.tier import triton_device
from llmsys.lessons.common import PoisonedResults, StridedResults, exact, multiples, with_gaps

ONE_HEAD = "llmsys.attention.one_head:one_head_kernel"
FLASH = "llmsys.attention.flash.kernels:flash_forward_kernel"
LONGER = "a loop that goes on for longer than it need meets hidden keys only, and work is not counted here"
BEYOND = "a row that exists sees no key beyond the last one"
LOADED_Q = "tl.load(q_ptr + rows[:, None] * q_stride + d[None, :], mask=rows[:, None] < Tq"  # as the solutions do it
LOADED_K = "tl.load(k_ptr + keys[:, None] * k_stride + d[None, :], mask=keys[:, None] < Tk"
CAUSALLY = "keys[None, :] <= {}[:, None] + Tk - Tq"
TYPES = "Write down the type of each operand of tl.dot: of q and k, and of P and v. A product takes two of one type."
IN_HALF = "That is what tensor cores do. float32 is left to units that are many times slower."
LIBRARY = (ONE_HEAD, FLASH, "llmsys.attention.flash.kernels:_absorb", "triton.language.standard:softmax")


def one_head(kernel):
    """A one-head kernel as an ordinary function, wherever Triton runs. `gaps` are the elements between the tokens of q,
    k and v that are nobody's, and `o_gap` those between o's: NaN."""
    from llmsys.attention.one_head import attend_one_head  # loads Triton, which is there if a kernel is

    def attend(
        q: Tensor, k: Tensor, v: Tensor, *, gaps: tuple[int, int, int] = (0, 0, 0), o_gap: int = 0, **options
    ) -> Tensor:
        spaced = (with_gaps(x.to(triton_device()), gap) for x, gap in zip((q, k, v), gaps, strict=True))
        poisoned = PoisonedResults(kernel, slice(3, 4))
        if o_gap:
            poisoned = StridedResults(poisoned, 3, slice(7, 8), lambda o: with_gaps(o, o_gap))
        return attend_one_head(*spaced, kernel=poisoned, **options).to(q.device)

    return attend


def grouped(kernel):
    """A kernel with flash's arguments as a function that gives (o, lse), or the one that `only` names. `tokens_first`
    has the tensors lie in memory as (B, T, H, D), which is how a model makes them, each in the rows of a matrix that is
    wider by another number of columns, and o with them."""

    def attend(q, k, v, *, block_m: int = 16, block_n: int = 16, tokens_first: bool = False, only: str = "", **options):
        given = [x.to(triton_device()) for x in (q, k, v)]
        if tokens_first:
            given = [within_rows(x, gap) for x, gap in zip(given, (8, 16, 24), strict=True)]
        tiles = TileConfig(block_m, block_n, num_warps=4, num_stages=1)
        poisoned = PoisonedResults(kernel, slice(3, 5))
        if tokens_first:
            poisoned = StridedResults(poisoned, 3, slice(14, 17), lambda o: within_rows(o, 40))
        o, lse = flash_attention(*given, return_lse=True, tiles=tiles, kernel=poisoned, **options)
        o, lse = o.to(q.device), lse.to(q.device)
        return {"o": o, "lse": lse}[only] if only else (o, lse)

    return attend


def within_rows(x: Tensor, gap: int) -> Tensor:
    """The same (B, H, T, D) as columns of a matrix (B, T, H·D + gap). The columns beyond are nobody's: NaN."""
    B, H, T, D = x.shape
    view = x.new_full((B, T, H * D + gap), float("nan"))[:, :, : H * D].unflatten(2, (H, D)).transpose(1, 2)
    return view.copy_(x)


def exact_head(q: Tensor, k: Tensor, v: Tensor, **options) -> Tensor:
    """One head's o as expected: `exact`, for q, k and v of shape (T, D)."""
    return exact(*(x[None, None] for x in (q, k, v)), **options)[0][0, 0]


def _draw(answer: Answer, Tq: int, Tk: int, D: int = 16, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    return answer.randn(Tq, D, scale=scale), answer.randn(Tk, D), answer.randn(Tk, D)


def _below_zero(answer: Answer, Tq: int, Tk: int, D: int, size: float) -> tuple[Tensor, Tensor, Tensor]:
    """Every score is negative, about −size·D·0.6 before the scale, and exact in fp32."""
    q, k, v = _draw(answer, Tq, Tk, D)
    step = 2.0 ** math.floor(math.log2(size / 64))
    return -multiples(q.abs() * size, step), k.abs().round(), v


def _fading(answer: Answer, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sixteen keys that weigh 1, and many that weigh e^-8.8 each: a running sum in half precision has a step of 1/64
    from 16 on, and takes in nothing of a tile of them, though they are a hundredth of o together. In float16, for tiles
    of 16 keys: q (16, 16), k, v (keys, 16)."""
    q, k, v = _draw(answer, 16, keys)
    first = (torch.arange(keys) < 16)[:, None]
    q, k, v = q / 64, torch.where(first, 0.0, k), torch.where(first, 1.0, 3.0) + v.abs() / 8
    q[:, 0], k[:, 0] = 4.0, torch.where(first[:, 0], 0.0, -8.8)
    return q.half(), k.half(), v.half()


def _far_from_zero(answer: Answer) -> tuple[Tensor, Tensor, Tensor]:
    """Scores near 100, where a number in half precision has a step of 1/16. In float16."""
    q, k, v = _draw(answer, 16, 48)
    q[:, 0], k[:, 0] = 20.0, 20.0
    return q.half(), k.half(), v.half()


@exercise_check(
    "04.inner_loop",
    reference=ONE_HEAD,
    forbids=LIBRARY,
    adapt=one_head,
    hints=(
        "Only three addresses change from tile to tile. Which rows of k and v does the tile that begins at `start` "
        "have, and in which order do lesson 03's lines for S, m, P, l and O follow?",
        "k's tile is q's load with other rows: k_ptr + keys[:, None] * k_stride + d[None, :], keys = start + "
        "tl.arange(0, BLOCK_N). Scores are tl.dot(q, tl.trans(k)) * scale_log2, in base two: m, P and the factor by "
        "which l and o shrink are all made with tl.exp2. The tensor cores want P in v's dtype.",
        "for start in range(0, Tk, BLOCK_N):\n"
        "    keys = start + arange(BLOCK_N);  k = load(k_ptr + keys * k_stride + d)\n"
        "    s = dot(q, trans(k)) * scale_log2\n"
        "    m_new = maximum(m, max(s, axis=1));  p = exp2(s - m_new);  shrink = exp2(m - m_new)\n"
        "    l = l * shrink + sum(p, axis=1);  v = load(v_ptr + keys * v_stride + d)\n"
        "    o = o * shrink + dot(p in v's dtype, v);  m = m_new",
    ),
)
def inner_loop(answer: Answer) -> None:
    with answer.property("values that are all alike: o is that value", why="Weights sum to one, whatever they are."):
        q, k, v = _draw(answer, 16, 16)
        answer.matches(v[:1].expand(16, -1).clone(), q, k, v[:1].expand(16, -1).clone())

    with answer.property(
        "one tile of queries, one of keys", why="From nothing to softmax(q kᵀ · scale) v in one step."
    ):
        q, k, v = _draw(answer, 16, 16)
        answer.matches(exact_head(q, k, v), q, k, v)

    with answer.property("many tiles of keys", why="When the maximum rises, both running sums shrink: l and o."):
        q, k, v = _draw(answer, 16, 48, scale=3.0)
        k = k[(k @ q[0]).argsort()]  # for the first query, the maximum rises in every tile
        answer.matches(exact_head(q, k, v), q, k, v)

    with answer.property("a head larger than a tile, and a smaller one", why="The products contract over D, not keys."):
        for D, block_n in ((32, 16), (16, 32)):
            q, k, v = _draw(answer, 16, 64, D)
            answer.matches(exact_head(q, k, v), q, k, v, block_n=block_n)

    with answer.property("many programs, each with its own queries", why="A program knows its rows by its number."):
        for block_m, block_n in ((32, 16), (16, 32)):
            q, k, v = _draw(answer, 64, 32)
            answer.matches(exact_head(q, k, v, scale=0.3), q, k, v, block_m=block_m, block_n=block_n, scale=0.3)

    with answer.property(
        "tokens that lie apart: equal distances in q and k",
        why="A head is a slice of a wider matrix: from token to token is a stride, not D.",
    ):
        q, k, v = _draw(answer, 16, 32)
        answer.matches(exact_head(q, k, v), q, k, v, gaps=(8, 8, 8))

    with answer.property("tokens that lie apart: three different distances", why="k and v need not lie as q does."):
        q, k, v = _draw(answer, 16, 32)
        answer.matches(exact_head(q, k, v, scale=1.0), q, k, v, scale=1.0, gaps=(8, 0, 24), o_gap=8)

    with answer.property("logits of ±10,000 overflow nothing", why="No exponent is ever positive."):
        q, k, v = _draw(answer, 16, 32, scale=1e4)
        q, k = multiples(q, 128), k.round()
        k = k[(k @ q[0]).argsort()]  # the last tile has the first query's maximum
        answer.matches(exact_head(q, k, v), q, k, v)
        q, k, v = _below_zero(answer, 16, 32, 16, 1e6)
        answer.matches(exact_head(q, k, v), q, k, v, rtol=1e-3, atol=1e-3)

    with answer.property(
        "float16 inputs, summed in float32", why="Products in half precision, sums in full.",
        hint="Which types do l and o have at the end of a step? Both began in float32, and both must still be.",
    ):  # fmt: skip
        q, k, v = (x.half() for x in _draw(answer, 16, 48))
        naive = naive_attention(*(x[None, None] for x in (q, k, v)))[0, 0]
        answer.accurate(answer(q, k, v), exact_head(q.double(), k.double(), v.double()), naive, tiny=1e-4)
        for q, k, v in (_fading(answer, 1024), _far_from_zero(answer)):
            answer.matches(exact_head(q, k, v), q, k, v, rtol=2e-3, atol=2e-3)

    with answer.property("both products multiply float16 as it is", why=IN_HALF, hint=TYPES):
        q, k, v = (x.half() for x in _draw(answer, 16, 16))
        run = answer(q, k, v)
        answer.products(run, 2 * 16**3, "fp16")
        answer.equal(run, exact_head(q, k, v), rtol=2e-3, atol=2e-3)

    with answer.property("k and v are loaded once a program", why="The one pass is what all of this was for."):
        q, k, v = _draw(answer, 32, 32)
        run = answer(q, k, v)
        answer.traffic(run, loaded=q.nbytes + 2 * (k.nbytes + v.nbytes), stored=q.nbytes)
        answer.products(run, 2 * 32 * 32 * 16, "fp32")
        answer.equal(run, exact_head(q, k, v))
        q, k, v = _draw(answer, 16, 64)
        run = answer(q, k, v, block_n=32)
        answer.traffic(run, loaded=q.nbytes + k.nbytes + v.nbytes, stored=q.nbytes)
        answer.products(run, 2 * 16 * 64 * 16, "fp32")
        answer.tiles(run, dots=2 * 2)
        answer.equal(run, exact_head(q, k, v))


@exercise_check(
    "04.causal",
    reference=ONE_HEAD,
    forbids=LIBRARY,
    adapt=one_head,
    hints=(
        "Two questions. Which is the last key that the last row of this program sees? And within a tile, which pairs "
        "of row and key are allowed?",
        "Row i sees the keys j ≤ i + Tk − Tq. So the loop ends at stop = (the program's first row) + BLOCK_M + Tk − "
        "Tq, never more than Tk here; and in a tile, s is −∞ where keys[None, :] > rows[:, None] + Tk − Tq.",
        "stop = Tk\n"
        "if CAUSAL: stop = program_id * BLOCK_M + BLOCK_M + Tk - Tq\n"
        "for start in range(0, stop, BLOCK_N):\n"
        "    s = …as before…\n"
        "    if CAUSAL: s = where(keys[None, :] <= rows[:, None] + Tk - Tq, s, -inf)\n"
        "    …as before…",
    ),
    equivalent={"CAUSAL → False where Tq > Tk": "Tq is at most Tk in this exercise"},
)
def causal(answer: Answer) -> None:
    with answer.property("values that are all alike: o is that value", why="Weights sum to one, whatever they are."):
        q, k, v = _draw(answer, 16, 32)
        answer.matches(v[:1].expand(16, -1).clone(), q, k, v[:1].expand(32, -1).clone(), causal=True)

    with answer.property("one tile, on the diagonal", why="A token sees itself and what came before."):
        q, k, v = _draw(answer, 16, 16)
        answer.matches(exact_head(q, k, v, causal=True), q, k, v, causal=True)

    with answer.property("not causal: every query sees every key", why="CAUSAL is an argument: ask it."):
        q, k, v = _draw(answer, 16, 32)
        answer.matches(exact_head(q, k, v), q, k, v)
        q, k, v = (x.half() for x in _draw(answer, 32, 64))
        options = {"scale": 0.3, "causal": False}
        expected = exact_head(q, k, v, **options)
        answer.matches(expected, q, k, v, **options, block_m=32, block_n=32, rtol=2e-3, atol=2e-3)

    with answer.property("many tiles, as many queries as keys", why="Below the diagonal a tile is seen as a whole."):
        q, k, v = _draw(answer, 32, 32, scale=2.0)
        answer.matches(exact_head(q, k, v, causal=True), q, k, v, causal=True)

    with answer.property(
        "fewer queries than keys: aligned at the end",
        why="With a cache the queries are the last tokens: query i is token i + Tk − Tq.",
    ):
        for Tq, Tk, scale in ((32, 48, None), (16, 64, 0.3)):
            q, k, v = _draw(answer, Tq, Tk)
            answer.matches(exact_head(q, k, v, causal=True, scale=scale), q, k, v, causal=True, scale=scale)

    with answer.property(
        "tiles that are not square", why="The diagonal crosses two tiles of keys, or ends in the middle of one."
    ):
        for block_m, block_n in ((32, 16), (16, 32)):
            q, k, v = _draw(answer, 32, 64)
            answer.matches(exact_head(q, k, v, causal=True), q, k, v, causal=True, block_m=block_m, block_n=block_n)

    with answer.property(
        "what is hidden may be far above what is seen",
        why="It must not set the maximum: all that is seen would vanish.",
    ):
        q, k, v = _draw(answer, 16, 16)
        k = k + 10 * (torch.arange(16.0) - 16)[:, None]  # all scores are negative, each about 30 above the one before
        answer.matches(exact_head(q.abs(), k, v, causal=True), q.abs(), k, v, causal=True, rtol=1e-3, atol=1e-3)

    with answer.property("scores far below zero", why="What is hidden must be below all scores: no number is, −∞ is."):
        q, k, v = _below_zero(answer, 16, 16, 16, 1e6)
        answer.matches(exact_head(q, k, v, causal=True), q, k, v, causal=True, rtol=1e-3, atol=1e-3)

    with answer.property(
        "tokens that lie apart, and a scale of one's own", why="As in (a).",
        hint="Four tensors, four strides: which line uses which? And the scale is in scale_log2, whatever it is.",
    ):  # fmt: skip
        q, k, v = _draw(answer, 16, 32)
        options = {"causal": True, "scale": 1.0}
        answer.matches(exact_head(q, k, v, **options), q, k, v, **options, gaps=(8, 0, 24), o_gap=16)
        q, k, v = (x.half() for x in _draw(answer, 32, 64, 32))
        options = {"causal": True, "scale": 0.3}
        expected, tiles = exact_head(q, k, v, **options), {"block_m": 32, "block_n": 32}
        answer.matches(expected, q, k, v, **options, **tiles, gaps=(8, 16, 0), o_gap=8, rtol=2e-3, atol=2e-3)

    with answer.property(
        "tiles that no query sees are neither loaded nor multiplied",
        why="Half of all tiles of a long sequence: half of the work.",
        hint="Which is the last key that the last row of a program sees, with as many queries as keys, and with fewer? "
        "And are products made of what was loaded, in the type that it has?",
    ):
        for half, Tk, block_n, tiles in (
            (False, 48, 16, 1 + 2 + 3),  # of keys, that the three programs see
            (True, 64, 32, 1 + 2 + 2),  # 32, 48 and 64 keys
            (False, 64, 16, 2 + 3 + 4),
        ):
            q, k, v = (x.half() if half else x for x in _draw(answer, 48, Tk))
            run = answer(q, k, v, causal=True, block_n=block_n)
            answer.traffic(run, loaded=q.nbytes + tiles * block_n * 2 * 16 * q.itemsize, stored=q.nbytes)
            answer.products(run, tiles * 2 * 16 * block_n * 16, "fp16" if half else "fp32")
            answer.tiles(run, dots=2 * tiles)
            near = {"rtol": 2e-3, "atol": 2e-3} if half else {}
            answer.equal(run, exact_head(q, k, v, causal=True), **near)


@exercise_check(
    "04.repair_mask",
    reference=ONE_HEAD,
    forbids=LIBRARY,
    adapt=one_head,
    hints=(
        "Read the sanitizer's report: which lines left which tensor, and in which program?",
        "The last tile of queries has rows that do not exist. They must neither be loaded nor stored.",
        "q = load(…, mask=rows[:, None] < Tq, other=0.0)        store(…, mask=rows[:, None] < Tq)",
    ),
    equivalent={
        "0.0 → 1.0": "a row that does not exist may hold anything: it is not stored",
        f"{LOADED_Q}, other=0.0) → {LOADED_Q})": "the same",
    },
)
def repair_mask(answer: Answer) -> None:
    with answer.property("whole tiles: as before", why="The kernel was right for these."):
        q, k, v = _draw(answer, 32, 32, scale=30.0)  # large scores: the maximum is still a maximum
        answer.matches(exact_head(q, k, v), q, k, v, rtol=1e-3, atol=1e-3)

    with answer.property(
        "a last tile of queries that is not full", why="Rows beyond the last query are somebody else's memory."
    ):
        for Tq, block_m, block_n in ((24, 16, 16), (33, 32, 32), (17, 16, 32)):
            q, k, v = _draw(answer, Tq, 32, 32)  # a head larger than a tile: a mask along the wrong axis does not fit
            answer.matches(exact_head(q, k, v), q, k, v, block_m=block_m, block_n=block_n)

    with answer.property("a single query", why="That is what decoding asks for, token by token."):
        q, k, v = _draw(answer, 1, 32)
        answer.matches(exact_head(q, k, v), q, k, v)
        q, k, v = (x.half() for x in _draw(answer, 1, 64))
        expected = exact_head(q, k, v, scale=0.3)
        answer.matches(expected, q, k, v, scale=0.3, block_m=32, block_n=32, rtol=2e-3, atol=2e-3)

    with answer.property("tokens that lie apart", why="Between them is no memory of ours, either."):
        q, k, v = _draw(answer, 19, 32)
        answer.matches(exact_head(q, k, v), q, k, v, gaps=(8, 16, 24))
        q, k, v = _draw(answer, 40, 48)
        answer.matches(exact_head(q, k, v, scale=1.0), q, k, v, scale=1.0, gaps=(0, 8, 0), o_gap=24, block_m=32)


@exercise_check(
    "04.repair_sum",
    reference=ONE_HEAD,
    forbids=LIBRARY,
    adapt=one_head,
    hints=(
        "The sanitizer has nothing to say: no lane leaves its tensor. So look at what the lanes that are masked hold.",
        "A key that does not exist is loaded as zeros. Its score is then q·0 = 0, and 2^(0 − m) is not 0. Which score "
        "vanishes from the maximum and from the sum alike?",
        "s = where(keys[None, :] < Tk, s, -inf), between the product and the maximum",
    ),
    equivalent={
        "0.0 → 1.0": "a key that does not exist may hold anything finite: its score is hidden",
        "0.0 → 1.0 (2)": "a value that does not exist may be anything finite: its weight is 0",
        f"{LOADED_K}, other=0.0) → {LOADED_K})": "and its score is replaced, whatever it is",
    },
)
def repair_sum(answer: Answer) -> None:
    with answer.property("whole tiles: as before", why="The kernel was right for these."):
        q, k, v = _draw(answer, 32, 32)
        answer.matches(exact_head(q, k, v), q, k, v)

    with answer.property(
        "a last tile of keys that is not full", why="The weights of the keys that exist must sum to one."
    ):
        for Tk, block_n in ((36, 16), (33, 32)):
            q, k, v = _draw(answer, 16, Tk)
            answer.matches(exact_head(q, k, v), q, k, v, block_n=block_n)
        q, k, v = (x.half() for x in _draw(answer, 64, 50, 32))
        options = {"scale": 0.3, "block_m": 32, "gaps": (8, 24, 16), "o_gap": 40, "rtol": 2e-3, "atol": 2e-3}
        answer.matches(exact_head(q, k, v, scale=0.3), q, k, v, **options)

    with answer.property("a single key: o is its value", why="A softmax over one score is 1, whatever the score is."):
        q, k, v = _draw(answer, 16, 1)
        answer.matches(v.expand(16, -1).clone(), q, k, v)

    with answer.property("scores far below zero", why="A key that does not exist must not be the largest one, either."):
        q, k, v = _below_zero(answer, 16, 20, 16, 100.0)
        answer.matches(exact_head(q, k, v), q, k, v, rtol=1e-3, atol=1e-3)

    with answer.property("scores of −1,000,000", why="Only −∞ is below all of them."):
        q, k, v = _below_zero(answer, 16, 20, 16, 1e6)
        answer.matches(exact_head(q, k, v), q, k, v, rtol=1e-2, atol=1e-2)


@exercise_check(
    "04.repair_strides",
    reference=ONE_HEAD,
    forbids=LIBRARY,
    adapt=one_head,
    hints=(
        "Write down, for the tile of k, the address of element (d, key) as it is computed, and as it should be: key "
        "number n begins at n · k_stride.",
        "A tile may be loaded transposed, (D, BLOCK_N), at no cost: only which index is multiplied by the stride "
        "decides what is where. It must be the token's index, wherever that stands.",
        "k = load(k_ptr + keys[None, :] * k_stride + d[:, None])      # (D, BLOCK_N)",
    ),
)
def repair_strides(answer: Answer) -> None:
    with answer.property("values that are all alike: o is that value", why="Weights sum to one, whatever they are."):
        q, k, v = _draw(answer, 16, 16)
        answer.matches(q.new_full((16, 16), 0.5), q, k, v.new_full((16, 16), 0.5))

    with answer.property(
        "as many keys as a head is large", why="A square is the treacherous case: nothing leaves its tensor."
    ):
        q, k, v = _draw(answer, 32, 32, 32)
        answer.matches(exact_head(q, k, v), q, k, v)

    with answer.property("more keys, and fewer", why="With fewer keys, swapped strides lead out of the tensor."):
        for Tk, D in ((64, 16), (16, 64)):
            q, k, v = _draw(answer, 16, Tk, D, scale=20.0)
            answer.matches(exact_head(q, k, v), q, k, v, rtol=1e-3, atol=1e-3)

    with answer.property(
        "tokens that lie apart: equal distances in q and k",
        why="A head is a slice of a wider matrix: from token to token is a stride, not D.",
    ):
        q, k, v = _draw(answer, 16, 32)
        answer.matches(exact_head(q, k, v), q, k, v, gaps=(8, 8, 0))

    with answer.property("tokens that lie apart: three different distances", why="k and v need not lie as q does."):
        q, k, v = _draw(answer, 16, 32)
        answer.matches(exact_head(q, k, v), q, k, v, gaps=(8, 0, 24))
        q, k, v = (x.half() for x in _draw(answer, 64, 96, 32))
        options = {"scale": 0.3, "block_m": 32, "block_n": 16, "gaps": (0, 24, 8), "o_gap": 16}
        answer.matches(exact_head(q, k, v, scale=0.3), q, k, v, **options, rtol=2e-3, atol=2e-3)


@exercise_check(
    "04.repair_empty_row",
    reference=ONE_HEAD,
    forbids=LIBRARY,
    adapt=one_head,
    hints=(
        "Take a row that sees no key, and follow it by hand: what is m_new, what is s − m_new, what is l at the end?",
        "Two places divide nothing by nothing. In the loop, −∞ − (−∞): subtract a finite number where m_new is −∞. At "
        "the end, 0 / 0: divide by something else where l is 0.",
        "shift = where(m_new == -inf, 0.0, m_new);  p = exp2(s - shift);  shrink = exp2(m - shift)\n"
        "o = o / where(l > 0, l, 1.0)",
    ),
    equivalent={
        "0.0 → 1.0": "a row that does not exist may hold anything: it is not stored",
        "0.0 → 1.0 (2)": "a key that does not exist may hold anything finite: its score is hidden",
        "0.0 → 1.0 (3)": "any finite number does in the place of −∞: 2^(−∞ − 1) is 0, too",
        "0.0 → 1.0 (4)": "a value that does not exist may be anything finite: its weight is 0",
        "1.0 → 2.0": "0 / 2 is 0",
        f"{LOADED_Q}, other=0.0) → {LOADED_Q})": "a row that does not exist is not stored",
        f"{LOADED_K}, other=0.0) → {LOADED_K})": "the score of a key that does not exist is replaced",
        f"seen & ({CAUSALLY.format('rows')}) → {CAUSALLY.format('rows')}": BEYOND,
        "tl.minimum → tl.maximum": LONGER,
        "stop = tl.minimum(tl.program_id(0) * BLOCK_M + BLOCK_M + Tk - Tq, Tk) → left out": LONGER,
        "tl.program_id(0) * BLOCK_M + BLOCK_M + Tk - Tq → tl.program_id(0) * BLOCK_M + BLOCK_M + Tk + Tq": LONGER,
    },
)
def repair_empty_row(answer: Answer) -> None:
    with answer.property("every row sees a key: as before", why="The kernel was right for these."):
        for Tq, Tk in ((32, 32), (16, 40)):
            q, k, v = _draw(answer, Tq, Tk)
            answer.matches(exact_head(q, k, v, causal=True), q, k, v, causal=True)
        answer.matches(exact_head(q, k, v), q, k, v)

    with answer.property(
        "a program none of whose rows sees a key: o = 0", why="Its loop has no steps: l is still 0 at the end."
    ):
        q, k, v = _draw(answer, 32, 16)
        answer.matches(exact_head(q, k, v, causal=True), q, k, v, causal=True)

    with answer.property(
        "a program in which some rows see a key, and some do not", why="All scores of such a row are −∞, and so is m."
    ):
        for Tq, Tk in ((24, 16), (24, 19), (16, 1)):
            q, k, v = _draw(answer, Tq, Tk)
            answer.matches(exact_head(q, k, v, causal=True), q, k, v, causal=True)
        q, k, v = (x.half() for x in _draw(answer, 50, 20, 32))  # the second program's first row is row 32
        options = {"causal": True, "scale": 0.3}
        expected, apart = exact_head(q, k, v, **options), {"gaps": (8, 24, 16), "o_gap": 40}
        answer.matches(expected, q, k, v, **options, **apart, block_m=32, rtol=2e-3, atol=2e-3)

    with answer.property("scores far below zero", why="m begins below all scores, and 0 is above some."):
        for size in (100.0, 1e6):
            q, k, v = _below_zero(answer, 24, 16, 16, size)
            answer.matches(exact_head(q, k, v, causal=True), q, k, v, causal=True, rtol=1e-3, atol=1e-3)

    with answer.property("not causal: every row sees a key, however many rows there are", why="Ask l, or CAUSAL."):
        q, k, v = _draw(answer, 24, 17)  # if the loop ended where a causal one does, the first program would miss a key
        answer.matches(exact_head(q, k, v), q, k, v)
        answer.matches(exact_head(q, k, v, scale=0.3), q, k, v, scale=0.3, block_m=32, block_n=32)

    with answer.property("a NaN that goes in comes out", why="It is a sign of trouble elsewhere: do not wash it away."):
        q, k, v = _draw(answer, 24, 16)
        q[20, 3] = float("nan")
        answer.matches(exact_head(q, k, v, causal=True), q, k, v, causal=True)
        q, k, v = _draw(answer, 24, 17)
        v[3, 5] = float("nan")
        answer.matches(exact_head(q, k, v), q, k, v)


@exercise_check(
    "04.ragged_groups",
    reference=FLASH,
    forbids=LIBRARY,
    adapt=grouped,
    hints=(
        "Begin with the four numbers that a program must know of each of its rows: which sequence, which key head, "
        "which query head, which query. The first two are the same for all rows, and come from program_id(1).",
        "rows = program_id(0) · BLOCK_M + arange; query = rows // G, head = h · G + rows % G; a row exists where rows "
        "< G · Tq. It sees the keys up to query + Tk − Tq, and below Tk. Pointers: the base, plus b · stride_b, plus "
        "head (or h) · stride_h, plus token · stride_t, plus the column. Masks: rows and columns for q and o, keys and "
        "columns for k and v. lse = (m + log2 l) · ln 2.",
        "b, h = program_id(1) // Hkv, program_id(1) % Hkv\n"
        "rows, query, head as in hint 2\n"
        "q = load(q_ptr + b·q_stride_b + head·q_stride_h + query·q_stride_t + dk, where row exists and dk < DK)\n"
        "stop = Tk;  if CAUSAL: stop = min((the tile's last row) // G + 1 + Tk − Tq, Tk)\n"
        "for start in range(0, stop, BLOCK_N):  (a) to (b), the loads masked with other=0, s = −∞ where not seen\n"
        "store o / l where row exists and dv < DV;  store lse at lse_ptr + (b·Hkv·G + head)·Tq + query",
    ),
    equivalent={
        "0.0 → 1.0": "a row that does not exist is not stored, and a column beyond DK meets a zero of k",
        "0.0 → 1.0 (2)": "the score of a key that does not exist is hidden, and a column beyond DK meets a zero of q",
        "0.0 → 1.0 (3)": "any finite number does in the place of −∞: 2^(−∞ − 1) is 0, too",
        "0.0 → 1.0 (4)": "the weight of a value that does not exist is 0, and a column beyond DV is not stored",
        "1.0 → 2.0": "0 / 2 is 0, and −∞ + log2(2) is −∞",
        f"seen & ({CAUSALLY.format('query')}) → {CAUSALLY.format('query')}": BEYOND,
    },
)
def ragged_groups(answer: Answer) -> None:
    def draw(Tq: int, Tk: int, *, B=1, G=1, Hkv=1, Dk=16, Dv=None, scale=1.0, half=False):
        shapes = (B, G * Hkv, Tq, Dk), (B, Hkv, Tk, Dk), (B, Hkv, Tk, Dv or Dk)
        q, k, v = (answer.randn(*shape) for shape in shapes)
        return tuple(x.half() if half else x for x in (q * scale, k, v))

    def right(*qkv, causal=False, scale=None, **options):
        expected = exact(*qkv, causal=causal, scale=scale)
        return answer.matches(expected, *qkv, causal=causal, scale=scale, **options)

    with answer.property("one head, whole tiles: o", why="This is (a), by another list of arguments."):
        q, k, v = draw(16, 32)
        answer.matches(exact(q, k, v)[0], q, k, v, only="o")

    with answer.property("its log-sum-exp", why="lse = m + ln l, in natural logarithms and in fp32."):
        right(*draw(16, 16))

    with answer.property("many heads, many sequences", why="program_id(1) counts the key heads of all sequences."):
        right(*draw(16, 16, B=2, Hkv=3))

    with answer.property("ragged ends of queries and keys", why="The first two repairs."):
        right(*draw(7, 16))
        right(*draw(17, 19, B=2, Dv=24), scale=0.3)

    with answer.property("heads of any size", why="BLOCK_DK and BLOCK_DV are powers of two, DK and DV are not."):
        right(*draw(16, 16, Dk=5, Dv=20))
        right(*draw(9, 20, G=2, Dk=24, Dv=8), causal=True, block_m=32, block_n=32)

    with answer.property(
        "grouped queries: row r is query r // G of head r % G",
        why="Query head h reads key head h // G; a tile holds all heads of a group.",
    ):
        right(*draw(8, 16, G=2, Hkv=2))
        right(*draw(7, 16, G=3))

    with answer.property("tensors that lie as (B, T, H, D)", why="Strides are given for batch, head and token."):
        right(*draw(5, 9, B=2, G=2, Hkv=2, Dv=24), tokens_first=True)
        right(*draw(9, 20, B=2, G=3, Hkv=1, Dv=8), tokens_first=True, causal=True, scale=0.3, block_n=32)

    with answer.property("causal, one head", why="Row r is query r; it sees the keys up to r + Tk − Tq."):
        for Tq, Tk in ((5, 21), (16, 17)):
            right(*draw(Tq, Tk), causal=True)

    with answer.property("causal, grouped", why="It is the query that sees so far, not the row: r // G + Tk − Tq."):
        for Tk in (21, 20):  # of 20 keys, the last row of a program is the first to see a new tile
            right(*draw(9, Tk, G=3), causal=True)
        right(*draw(10, 20, B=2, G=2, Hkv=2), causal=True, scale=0.3, block_m=32)

    with answer.property(
        "rows without a key: o = 0, lse = −∞", why="The fourth repair.",
        hint="Which rows see no key? With G heads in a tile that is a question of the query, r // G, not of the row.",
    ):  # fmt: skip
        right(*draw(24, 7), causal=True)
        right(*draw(12, 5, G=3, Dv=24), causal=True)

    with answer.property("logits of ±10,000, a scale of one's own", why="Nothing overflows, and lse is in units of s."):
        q, k, v = draw(16, 20, scale=1e4)
        right(multiples(q, 128), k.round(), v, scale=0.5)

    with answer.property("scores of −1,000,000", why="m begins below all scores: at −∞."):
        q, k, v = draw(16, 20)
        right(-multiples(q.abs() * 1e6, 2**14), k.abs().round(), v, rtol=1e-2, atol=1e-2)

    with answer.property("a NaN that goes in comes out", why="As in the fourth repair."):
        q, k, v = draw(24, 16)
        q[0, 0, 20, 3] = float("nan")
        answer.matches(exact(q, k, v, causal=True)[0], q, k, v, causal=True, only="o")

    with answer.property("float16, with sums and lse in float32", why="As (a)."):
        q, k, v = draw(9, 40, half=True)
        answer.matches(exact(q, k, v), q, k, v, rtol=2e-3, atol=2e-3)
        answer.matches(exact(q, k, v)[1], q, k, v, only="lse")  # to float32's own tolerance
        for heads in (_fading(answer, 512), _far_from_zero(answer)):
            q, k, v = (x[None, None] for x in heads)
            answer.matches(exact(q, k, v), q, k, v, rtol=2e-3, atol=2e-3)

    with answer.property("both products multiply float16 as it is", why=IN_HALF, hint=TYPES):
        q, k, v = draw(16, 16, half=True)
        run = answer(q, k, v)
        answer.products(run, 2 * 16**3, "fp16")
        answer.equal(run, exact(q, k, v), rtol=2e-3, atol=2e-3)
        q, k, v = draw(8, 16, G=2, Dv=8, half=True)
        run = answer(q, k, v, causal=True, scale=0.3)
        answer.products(run, 2 * 16**3, "fp16")
        answer.equal(run, exact(q, k, v, causal=True, scale=0.3), rtol=2e-3, atol=2e-3)

    with answer.property(
        "k and v are loaded once a program, for all heads of the group", why="That is what packing them is for."
    ):
        q, k, v = draw(16, 16, G=2)
        run = answer(q, k, v)
        programs = 2  # 32 rows, in tiles of 16
        answer.traffic(run, loaded=q.nbytes + programs * (k.nbytes + v.nbytes), stored=q.nbytes + q.nbytes // 16)
        answer.equal(run, exact(q, k, v))

    with answer.property("causal: tiles that no row of the program sees are skipped", why="As in (b)."):
        q, k, v = draw(48, 48, G=2)
        run = answer(q, k, v, causal=True, block_m=32)
        tiles = 1 + 2 + 3  # the last query of the three programs is 15, 31 or 47, and sees as many tiles of 16
        answer.traffic(run, loaded=q.nbytes + tiles * 16 * 2 * 64, stored=q.nbytes + q.nbytes // 16)
        answer.products(run, tiles * 2 * 32 * 16 * 16, "fp32")
        answer.tiles(run, dots=2 * tiles)
        answer.equal(run, exact(q, k, v, causal=True))
        q, k, v = draw(16, 40, G=3)
        run = answer(q, k, v, causal=True, block_n=32)
        keys, tiles = 32 + 40 + 40, 1 + 2 + 2  # the last query of a program is 5, 10 or 15, and sees 30, 35 or 40 keys
        answer.traffic(run, loaded=q.nbytes + keys * 2 * 64, stored=q.nbytes + q.nbytes // 16)
        answer.products(run, tiles * 2 * 16 * 32 * 16, "fp32")
        answer.tiles(run, dots=2 * tiles)
        answer.equal(run, exact(q, k, v, causal=True))
