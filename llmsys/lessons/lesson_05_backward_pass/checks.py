"""The checks of lesson 05, the backward pass. What is expected is autograd's, of naive attention in float64.

While it is watched, a program takes Triton's interpreter about 20 ms, and each further step of its loop 10. So a
kernel's shapes are as small as the property allows: tiles of 16, and one or two of them.
"""

import torch
from torch import Tensor

from llmsys.attention import backward
from llmsys.attention.flash.backward import launch_dkdv
from llmsys.attention.flash.tiles import LOG2_E, TileConfig
from llmsys.attention.naive import naive_attention
from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.hardware.meters import work
from llmsys.hardware.tier import triton_device
from llmsys.lessons.common import PoisonedResults, exact
from llmsys.lessons.common import tokens_first as laid_out_tokens_first

AUTOGRAD = (torch.autograd.grad, torch.autograd.backward, "aten::*softmax_backward*", "aten::*scaled_dot_product*")
LIBRARY = (
    backward.backward_stored,
    backward.backward_tiled,
    "llmsys.attention.flash.backward:backward",
    naive_attention,
)
KERNELS = (
    "llmsys.attention.flash.backward_kernels:flash_dkdv_kernel",
    "llmsys.attention.flash.backward_kernels:flash_dq_kernel",
    "llmsys.attention.flash.backward_kernels:_absorb_queries",
    "llmsys.attention.flash.backward_kernels:_absorb_keys",
)
NAMES = ("dq", "dk", "dv")


def one_gradient(function):
    """A backward pass that gives the one gradient that `only` names, so that a mistake in another does not hide it;
    or, for `only="flops"`, the floating-point operations of its matrix products."""

    def gradients(*tensors, only: str = "", **options):
        if only == "flops":
            with work() as done:
                function(*tensors, **options)
            return done.matmul_flops
        result = function(*tensors, **options)
        return result[NAMES.index(only)] if only and isinstance(result, tuple) and len(result) == 3 else result

    return gradients


def keys_and_values(kernel):
    """A kernel with the arguments of `flash_dkdv_kernel` as a function that gives (dk, dv), or the one that `only`
    names. `tokens_first` has the tensors lie in memory as (B, T, H, D), which is how a model makes them."""

    def gradients(
        q, k, v, lse, delta, do, *, causal: bool = False, scale: float | None = None, block_m: int = 16,
        block_n: int = 16, tokens_first: bool = False, only: str = "",
    ):  # fmt: skip
        given = [x.to(triton_device()) for x in (q, k, v, do)]
        if tokens_first:
            given = [laid_out_tokens_first(x) for x in given]
        lse_log2 = torch.where(lse == float("-inf"), float("inf"), lse * LOG2_E).to(triton_device())
        tiles = TileConfig(block_m, block_n, num_warps=4, num_stages=1)
        scale = q.shape[3] ** -0.5 if scale is None else scale
        poisoned = PoisonedResults(kernel, slice(6, 8))
        results = launch_dkdv(*given, lse_log2, delta.to(triton_device()), causal, scale, "ieee", tiles, poisoned)
        dk, dv = (x.to(q.device) for x in results)
        return {"dk": dk, "dv": dv}[only] if only else (dk, dv)

    return gradients


def draw(
    answer: Answer, Tq: int, Tk: int, *, B=1, G=1, Hkv=1, Dk=8, Dv=None, scale=1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and do."""
    return (
        answer.randn(B, G * Hkv, Tq, Dk, scale=scale),
        answer.randn(B, Hkv, Tk, Dk),
        answer.randn(B, Hkv, Tk, Dv or Dk),
        answer.randn(B, G * Hkv, Tq, Dv or Dk),
    )


def exact_gradients(q, k, v, do, **options) -> dict[str, Tensor]:
    """dq, dk and dv as expected, computed in float64 and rounded once."""
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    gradients = torch.autograd.grad(naive_attention(*leaves, **options), leaves, do.double())
    return {name: x.to(q.dtype) for name, x in zip(NAMES, gradients, strict=True)}


def weights(q, k, **options) -> Tensor:
    """P (B, Hq, Tq, Tk): what attention gives for values that are the rows of a unit matrix."""
    unit = torch.eye(k.shape[2], dtype=torch.float64).expand(*k.shape[:2], -1, -1)
    return naive_attention(q.double(), k.double(), unit, **options).to(q.dtype)


@exercise_check(
    "05.backward_stored",
    reference=backward.backward_stored,
    forbids=(*AUTOGRAD, *LIBRARY[1:]),
    adapt=one_gradient,
    hints=(
        "Equations (2) to (5) are five lines. Write each with its shapes beside it, for one head; which of them need "
        "a transposition so that the shapes fit?",
        "With groups, stack the G · Tq rows of a key head first: q.unflatten(1, (Hkv, G)).flatten(2, 3), and p and do "
        "likewise. Then dK and dV are sums over all heads of the group by themselves, and of dQ alone the rows have to "
        "be unstacked. delta is a sum over keys: a number for each row, so keep its dimension.",
        "Q, P, dO = (x stacked: (B, Hkv, G·Tq, …) for x in (q, p, do))\n"
        "dV = P.mT @ dO;  dP = dO @ v.mT\n"
        "dS = P * (dP - (P * dP).sum(-1, keepdim=True))\n"
        "dQ = scale * dS @ k, unstacked to q's shape;  dK = scale * dS.mT @ Q",
    ),
)
def backward_stored(answer: Answer) -> None:
    def right(only: str, q, k, v, do, *, causal=False, tolerance=None, **options):
        expected = exact_gradients(q, k, v, do, causal=causal, **options)
        p = weights(q, k, causal=causal, **options)
        expected = expected[only] if only else tuple(expected.values())
        answer.matches(expected, q, k, v, p, do, only=only, rtol=tolerance, atol=tolerance, **options)

    with answer.property("dv: a value's gradient is what the queries made of it", why="o = P v, so dV = Pᵀ dO."):
        right("dv", *draw(answer, 5, 9, Dv=4))

    with answer.property(
        "a single key: nothing reaches q and k", why="Its weight is 1, whatever its score is: P does not depend on S."
    ):
        for only in ("dq", "dk"):
            right(only, *draw(answer, 4, 1), scale=1.0)

    with answer.property("dq, for a scale of 1", why="delta is the mean of a row of dP under its weights: Σ P ∘ dP."):
        right("dq", *draw(answer, 5, 9, Dv=4), scale=1.0)

    with answer.property("dk, for a scale of 1", why="dK is a sum over queries, so dS is transposed."):
        right("dk", *draw(answer, 5, 9, Dv=4), scale=1.0)

    with answer.property("the scale, by default 1/√Dk", why="S = scale · q kᵀ: it is in both gradients, once."):
        right("", *draw(answer, 6, 7, Dv=4))
        right("", *draw(answer, 6, 7), scale=0.3)

    with answer.property("all three, for many heads and sequences", why="Heads know nothing of each other."):
        right("", *draw(answer, 6, 7, B=2, Hkv=3, Dv=4))

    with answer.property(
        "grouped queries: dk and dv are sums over the group",
        why="G query heads read the same key head, h // G: whatever each of them asks of it adds up.",
    ):
        for only in ("dv", "dk", "dq"):
            right(only, *draw(answer, 5, 7, B=2, G=3, Hkv=2, Dv=4))

    with answer.property(
        "weights of zero, and rows without a key", why="What was masked had no part in o: its gradient is 0, no NaN."
    ):
        right("", *draw(answer, 7, 7), causal=True)
        right("", *draw(answer, 9, 4, G=2), causal=True)

    with answer.property("weights close to 0 and 1", why="A row that is sure of itself has hardly any gradient."):
        right("", *draw(answer, 8, 8, scale=30.0), tolerance=1e-3)


@exercise_check(
    "05.backward_tiled",
    reference=backward.backward_tiled,
    forbids=(*AUTOGRAD, LIBRARY[0], *LIBRARY[2:]),
    adapt=one_gradient,
    hints=(
        "Which of the five lines of (a) needs more than a tile of the matrix? And which sums go over the queries, "
        "which over the keys: what has to be added up in which of the two loops?",
        "A tile of P is exp(S − lse), with lse of its rows. delta is (do · o).sum(-1), once, before the loops. With "
        "keys outside, dK and dV of a tile are sums over the inner loop; every pair of tiles adds to its rows of dq. "
        "With causal, P is 0 where key > query + Tk − Tq, and the first query that sees key j is j − (Tk − Tq).",
        "delta = (do * o).sum(-1);  dq = zeros\n"
        "for j in range(0, Tk, block_k):\n"
        "    K, V = k, v of this tile;  dK, dV = 0, 0\n"
        "    first = max(j − (Tk − Tq), 0) // block_q · block_q if causal else 0\n"
        "    for i in range(first, Tq, block_q):\n"
        "        Q, dO, L, Delta = rows i… of q, do, lse, delta, stacked to (B, Hkv, G·rows, …)\n"
        "        P = exp(scale · Q Kᵀ − L), 0 where key > query + Tk − Tq\n"
        "        dV += Pᵀ dO;  dS = P ∘ (dO Vᵀ − Delta);  dK += dSᵀ Q;  dq rows += dS K, unstacked\n"
        "    dk, dv of this tile = scale · dK, dV\n"
        "return scale · dq, dk, dv",
    ),
)
def backward_tiled(answer: Answer) -> None:
    def right(only: str, q, k, v, do, *, causal=False, scale=None, tolerance=None, **options):
        expected = exact_gradients(q, k, v, do, causal=causal, scale=scale)
        o, lse = exact(q, k, v, causal=causal, scale=scale)
        return answer.matches(
            expected[only] if only else tuple(expected.values()), q, k, v, o, lse, do,
            causal=causal, scale=scale, only=only, rtol=tolerance, atol=tolerance, **options,
        )  # fmt: skip

    with answer.property("one tile: dv, from a P that was not given", why="P = exp(S − lse), by the row's lse."):
        right("dv", *draw(answer, 6, 8, Dv=4), scale=1.0, block_q=8, block_k=8)

    with answer.property("one tile: dq and dk", why="delta is rowsum(dO ∘ o): P itself is not needed for it."):
        for only in ("dq", "dk"):
            right(only, *draw(answer, 6, 8, Dv=4), scale=1.0, block_q=8, block_k=8)

    with answer.property("the scale, by default 1/√Dk", why="It is in S, and once in dq and in dk."):
        right("", *draw(answer, 6, 8), block_q=8, block_k=8)
        right("", *draw(answer, 6, 8), scale=0.7, block_q=8, block_k=8)

    with answer.property("several tiles of queries", why="dk and dv of a key are sums over all queries."):
        for only in ("dv", "dk", "dq"):
            right(only, *draw(answer, 24, 8), block_q=8, block_k=8)

    with answer.property(
        "several tiles of keys", why="P's row sums to one over all of them, and dq of a query is a sum over all keys."
    ):
        for only in ("dv", "dk", "dq"):
            right(only, *draw(answer, 8, 24), block_q=8, block_k=8)

    with answer.property("ragged ends on both sides", why="No length is a multiple of a tile for long."):
        for Tq, Tk, block_q, block_k in ((7, 13, 4, 8), (17, 5, 16, 3), (1, 9, 4, 4), (9, 1, 2, 2)):
            right("", *draw(answer, Tq, Tk), block_q=block_q, block_k=block_k)

    with answer.property("all three, for many heads and sequences", why="Heads know nothing of each other."):
        right("", *draw(answer, 9, 6, B=2, Hkv=3, Dv=4), block_q=4, block_k=4)

    with answer.property(
        "causal, aligned at the end", why="As in the forward pass: query i sees the keys up to i + Tk − Tq."
    ):
        for Tq, Tk, block in ((8, 8, 8), (16, 16, 4), (5, 13, 4), (1, 9, 4)):
            right("", *draw(answer, Tq, Tk), causal=True, block_q=block, block_k=block)
        right("", *draw(answer, 12, 20), causal=True, block_q=8, block_k=3)
        right("", *draw(answer, 12, 14), causal=True, block_q=3, block_k=8)
        right("", *draw(answer, 3, 4), causal=True, block_q=1, block_k=2)

    with answer.property(
        "what is hidden may be far above what is seen", why="exp overflows there, and ∞ · 0 is no number: select, do "
        "not multiply."
    ):  # fmt: skip
        q, k, v, do = draw(answer, 8, 8)
        # Each key's scores are far above those of the keys before, and the last one's are of the usual size: S − lse
        # overflows where it is hidden, and a quotient of exponentials is 0 / 0 where it is not.
        k = k + 40 * (torch.arange(8.0) - 7)[:, None]
        right("dv", q.abs(), k, v, do, causal=True, block_q=8, block_k=8, tolerance=1e-3)

    with answer.property(
        "rows without a key: no gradient, and no NaN", why="Their lse is −∞, and −∞ − (−∞) is no number."
    ):
        right("", *draw(answer, 12, 5, Hkv=2), causal=True, block_q=4, block_k=4)
        right("", *draw(answer, 12, 5), causal=True, block_q=16, block_k=16)

    with answer.property(
        "grouped queries: dk and dv are sums over the group", why="G query heads read the same key head, h // G."
    ):
        for only in ("dv", "dk", "dq"):
            right(only, *draw(answer, 9, 11, B=2, G=3, Hkv=2, Dv=4), block_q=4, block_k=4)
        right("", *draw(answer, 9, 11, G=2, Hkv=2), causal=True, block_q=4, block_k=4)
        right("", *draw(answer, 9, 5, G=2), causal=True, scale=0.4, block_q=4, block_k=4)

    with answer.property(
        "tensors that lie as (B, T, H, D)", why="A model makes q so, and hands you a view: .view() may refuse it."
    ):
        tensors = [laid_out_tokens_first(x) for x in draw(answer, 9, 7, B=2, G=2, Hkv=2)]
        right("", *tensors, block_q=4, block_k=4)

    with answer.property("logits of ±1,000", why="exp(S) alone would overflow; S − lse is never above 0."):
        right("", *draw(answer, 8, 12, scale=300.0), block_q=4, block_k=4, tolerance=2e-2)

    def operations(pairs: int, *tensors, causal=False, block: int) -> None:
        q, k, v, do = tensors
        o, lse = exact(q, k, v, causal=causal)
        run = answer(q, k, v, o, lse, do, causal=causal, block_q=block, block_k=block, only="flops")
        enough = 5 * 2 * pairs * block * block * q.shape[3]
        answer.that(
            run,
            lambda r: isinstance(r.value, int) and 0 < r.value <= enough,
            expected=f"at most {enough:,} FLOP in matrix products, five products for each of {pairs} pairs of tiles",
        )

    with answer.property("five products for a pair of tiles", why="S again, then dV, dP, dQ and dK."):
        operations(9, *draw(answer, 24, 24), block=8)

    with answer.property(
        "causal: five for a pair that sees each other, none for another", why="Half of the work of a long sequence."
    ):
        operations(10, *draw(answer, 32, 32), causal=True, block=8)  # 1 + 2 + 3 + 4 pairs of 16

    with answer.property(
        "nothing with Tq × Tk elements is ever made", why="That is what recomputing is for: memory that grows with T."
    ):
        q, k, v, do = draw(answer, 48, 48)
        for causal in (False, True):  # a mask of all pairs would have T² elements, too
            o, lse = exact(q, k, v, causal=causal)
            run = answer(q, k, v, o, lse, do, causal=causal, block_q=8, block_k=16)
            answer.allocates(run, q.nbytes, "a gradient, the largest thing that there is")
            answer.equal(run, tuple(exact_gradients(q, k, v, do, causal=causal).values()))


@exercise_check(
    "05.dkdv_kernel",
    reference=KERNELS[0],
    forbids=KERNELS[1:],
    adapt=keys_and_values,
    hints=(
        "It is the inner loop of (b), and the addresses are those of lesson 04's last exercise: which sequence, which "
        "query head and which query is each of the tile's rows? What of dv and dk can be said without any other "
        "program's help?",
        "rows = row + arange(BLOCK_M) for row in range(start, G · Tq, BLOCK_M); query = rows // G, head = h · G + rows "
        "% G. A row's lse_log2 and delta lie at (b · Hkv · G + head) · Tq + query. p = exp2(s − lse_log2) with s = q "
        "kᵀ · scale_log2, and 0 where a key is hidden: key > query + Tk − Tq. The scale of dk is in the skeleton.",
        "start = 0;  if CAUSAL: start = max(first_key − (Tk − Tq), 0) · G // BLOCK_M · BLOCK_M\n"
        "for row in range(start, G · Tq, BLOCK_M):\n"
        "    rows, query, head as in hint 2;  a row exists where rows < G · Tq\n"
        "    q, do = load(…) with masks for rows and columns;  lse_log2, delta = load(…) with a mask for rows\n"
        "    p = exp2(dot(q, trans(k)) · scale_log2 − lse_log2[:, None]);  if CAUSAL: p = where(seen, p, 0)\n"
        "    dv += dot(trans(p in do's dtype), do)\n"
        "    ds = p · (dot(do, trans(v)) − delta[:, None])\n"
        "    dk += dot(trans(ds in q's dtype), q)",
    ),
    equivalent={
        "0.0 → 1.0": "of a row that does not exist, do is 0 and delta is 0: whatever its q, it adds p · 0",
        "0.0 → 1.0 (3)": "whatever its lse, it adds p · 0",
        "0.0 → 1.0 (4)": "whatever its delta, its dS is multiplied by a q of 0",
        "0 → 1 (2)": "the loop begins with a whole tile of rows: the first one, if the first query is 0 or 1",
    },
)
def dkdv_kernel(answer: Answer) -> None:
    def given(q, k, v, do, *, causal=False, scale=None):
        o, lse = exact(q, k, v, causal=causal, scale=scale)
        return q, k, v, lse, (do.double() * o.double()).sum(dim=-1).float(), do

    def right(only: str, *tensors, causal=False, scale=None, tolerance=None, **options):
        expected = exact_gradients(*tensors, causal=causal, scale=scale)
        arguments = given(*tensors, causal=causal, scale=scale)
        return answer.matches(
            expected[only] if only else (expected["dk"], expected["dv"]), *arguments,
            causal=causal, scale=scale, only=only, rtol=tolerance, atol=tolerance, **options,
        )  # fmt: skip

    def sized(Tq: int, Tk: int, *, Dk: int = 16, **options):
        return draw(answer, Tq, Tk, Dk=Dk, **options)

    with answer.property("a single key, queries of 0: dv is the sum of do", why="Its weight is 1 for every query."):
        q, k, v, do = sized(16, 1)
        right("", torch.zeros_like(q), k, v, do)

    with answer.property("one tile of queries, one of keys: dv", why="P = 2^(s − lse), then dV = Pᵀ dO."):
        right("dv", *sized(16, 16))

    with answer.property("one tile of queries, one of keys: dk", why="dS = P ∘ (dP − delta), then dK = dSᵀ Q."):
        right("dk", *sized(16, 16))

    with answer.property("many tiles of queries", why="A program's dk and dv are sums over all queries."):
        right("", *sized(32, 16))

    with answer.property("many programs, each with its own keys", why="A program knows its keys by its number."):
        right("", *sized(16, 32), block_n=16)

    with answer.property("tiles that are not square", why="Scores are (BLOCK_M, BLOCK_N), or the other way round."):
        right("", *sized(32, 16), block_m=32, block_n=16)
        right("", *sized(16, 32), block_m=16, block_n=32)

    with answer.property("ragged ends of queries and keys", why="The masks are those of lesson 04's repairs."):
        for Tq, Tk in ((7, 16), (17, 5)):
            right("", *sized(Tq, Tk))

    with answer.property("heads of any size", why="BLOCK_DK and BLOCK_DV are powers of two, DK and DV are not."):
        right("", *sized(16, 16, Dk=5, Dv=20))

    with answer.property("many heads, many sequences", why="program_id(1) counts the key heads of all sequences."):
        right("", *sized(16, 16, B=2, Hkv=3))

    with answer.property(
        "grouped queries: row r is query r // G of head r % G",
        why="All heads of a group pass through one program, which sums over them: nobody else adds to its dk.",
    ):
        right("", *sized(8, 16, G=2, Hkv=2))
        right("", *sized(7, 16, B=2, G=3))

    with answer.property("tensors that lie as (B, T, H, D)", why="Strides are given for batch, head and token."):
        right("", *sized(5, 9, B=2, G=2, Hkv=2, Dv=24), tokens_first=True)

    with answer.property("causal, one head", why="Row r is query r; it sees the keys up to r + Tk − Tq."):
        for Tq, Tk in ((16, 16), (5, 21), (17, 17)):
            right("", *sized(Tq, Tk), causal=True)

    with answer.property("causal, grouped", why="It is the query that sees so far, not the row: r // G + Tk − Tq."):
        right("", *sized(11, 20, G=3), causal=True)

    with answer.property("rows without a key have no part in it", why="Their lse_log2 is given as +∞: 2^(s − ∞) = 0."):
        right("", *sized(24, 7), causal=True)

    with answer.property(
        "what is hidden may be far above what is seen", why="2^(s − lse) overflows there, and ∞ · 0 is no number."
    ):
        q, k, v, do = sized(16, 16)
        k = k + 40 * torch.arange(16.0)[:, None]
        right("dv", q.abs(), k, v, do, causal=True, tolerance=1e-2)

    with answer.property(
        "a scale of one's own", why="scale_log2 is in s, and the skeleton's scale is in dk: once each."
    ):
        right("", *sized(16, 16), scale=0.5)

    with answer.property("float16, summed in float32", why="tl.dot gives float32: dv += …, dk += …, in float32."):
        # The last tile of queries takes away what the first one adds, which is 32 times as much as what remains. A sum
        # that is rounded to float16 in between loses what remains.
        q, k, v, do = sized(32, 16)
        do[:, :, :16] *= 32
        q, do = torch.cat((q, q[:, :, :16]), dim=2), torch.cat((do, -do[:, :, :16]), dim=2)
        tensors = [x.half() for x in (q, k, v, do)]
        leaves = [x.clone().requires_grad_() for x in tensors[:3]]
        naive = torch.autograd.grad(naive_attention(*leaves), leaves, tensors[3])
        true = exact_gradients(*(x.double() for x in tensors))
        for only, low in (("dv", naive[2]), ("dk", naive[1])):
            answer.accurate(answer(*given(*tensors), only=only), true[only], low)

    with answer.property(
        "products as told: of float16 as it is, of float32 with PRECISION",
        why="Tensor cores multiply half precision. And without PRECISION, a GPU would round float32 to tf32.",
    ):
        for cast, kind in ((Tensor.float, "fp32"), (Tensor.half, "fp16")):
            tensors = [cast(x) for x in sized(16, 16)]
            run = answer(*given(*tensors))
            answer.products(run, 4 * 16**3, kind)
            expected = exact_gradients(*tensors)
            answer.equal(run, (expected["dk"], expected["dv"]), rtol=2e-2, atol=2e-2)

    with answer.property("q and do are loaded once a program, for all heads", why="Each program walks over them once."):
        tensors = sized(16, 32, G=2)
        q, k, v, lse, _, do = given(*tensors)
        run = answer(*given(*tensors))
        programs = 2
        once = q.nbytes + do.nbytes + 2 * lse.nbytes
        answer.traffic(run, loaded=k.nbytes + v.nbytes + programs * once, stored=k.nbytes + v.nbytes)
        expected = exact_gradients(*tensors)
        answer.equal(run, (expected["dk"], expected["dv"]))

    with answer.property(
        "causal: queries that see none of the tile's keys are not loaded", why="Half of the work of a long sequence."
    ):
        tensors = sized(32, 32, G=2)
        q, k, v, lse, _, do = given(*tensors, causal=True)
        run = answer(*given(*tensors, causal=True), causal=True, block_m=16)
        share = (4 + 2) / 4  # of the 64 rows, in four tiles, the two programs see all and the last two
        walked = int(share * (q.nbytes + do.nbytes + 2 * lse.nbytes))
        answer.traffic(run, loaded=k.nbytes + v.nbytes + walked, stored=k.nbytes + v.nbytes)
        expected = exact_gradients(*tensors, causal=True)
        answer.equal(run, (expected["dk"], expected["dv"]))
