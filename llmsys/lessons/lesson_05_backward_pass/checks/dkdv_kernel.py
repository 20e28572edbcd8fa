"""05.dkdv_kernel: dk and dv in Triton, launched by the library's own launcher.

While it is watched, a program takes Triton's interpreter about 20 ms, and each further step of its loop 10. So a
kernel's shapes are as small as the property allows: tiles of 16, and one or two of them.
"""

import torch
from torch import Tensor

from llmsys.attention.flash.backward import launch_dkdv
from llmsys.attention.flash.tiles import LOG2_E, TileConfig
from llmsys.course.checking.answer import Answer, Run
from llmsys.course.checking.checks import exercise_check
from llmsys.hardware.tier import triton_device
from llmsys.lessons.common import PoisonedResults, exact
from llmsys.lessons.lesson_05_backward_pass.gradients import draw, exact_gradients

REFERENCE = "llmsys.attention.flash.backward_kernels:flash_dkdv_kernel"
LIBRARY = (
    "llmsys.attention.flash.backward_kernels:*",
    "llmsys.attention.flash.kernels:*",
    "llmsys.attention.hopper*:*",
)
HALF = 1e-2  # tolerance of float16: P and dS are rounded to it before they are multiplied
ROWS = (
    "Write down, for G = 2 and a tile that begins at row 3, which query and which head its first rows are. Then: which "
    "of q, do, lse and delta are addressed by which of the two?"
)


def keys_and_values(kernel):
    """A kernel with the arguments of `flash_dkdv_kernel` as a function that gives (dk, dv), or the one that `only`
    names. `tokens_first` has the tensors lie in memory as (B, T, H, D), which is how a model makes them, each in the
    rows of a matrix that is wider by another number of columns."""

    def gradients(
        q, k, v, lse, delta, do, *, causal: bool = False, scale: float | None = None, block_m: int = 16,
        block_n: int = 16, tokens_first: bool = False, only: str = "",
    ):  # fmt: skip
        given = [x.to(triton_device()) for x in (q, k, v, do)]
        if tokens_first:
            given = [_within_rows(x, gap) for x, gap in zip(given, (8, 16, 24, 40), strict=True)]
        lse_log2 = torch.where(lse == float("-inf"), float("inf"), lse * LOG2_E).to(triton_device())
        tiles = TileConfig(block_m, block_n, num_warps=4, num_stages=1)
        scale = q.shape[3] ** -0.5 if scale is None else scale
        poisoned = PoisonedResults(kernel, slice(6, 8))
        results = launch_dkdv(*given, lse_log2, delta.to(triton_device()), causal, scale, "ieee", tiles, poisoned)
        dk, dv = (x.to(q.device) for x in results)
        return {"dk": dk, "dv": dv}[only] if only else (dk, dv)

    return gradients


@exercise_check(
    "05.dkdv_kernel",
    reference=REFERENCE,
    forbids=LIBRARY,
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
    def right(only: str, *tensors, causal=False, scale=None, tolerance=None, **options) -> Run:
        expected = exact_gradients(*tensors, causal=causal, scale=scale)
        arguments = _given(*tensors, causal=causal, scale=scale)
        return answer.matches(
            expected[only] if only else (expected["dk"], expected["dv"]), *arguments,
            causal=causal, scale=scale, only=only, rtol=tolerance, atol=tolerance, **options,
        )  # fmt: skip

    def sized(Tq: int, Tk: int, *, Dk: int = 16, half: bool = False, **options) -> list[Tensor]:
        return [x.half() if half else x for x in draw(answer, Tq, Tk, Dk=Dk, **options)]

    with answer.property("a single key, queries of 0: dv is the sum of do", why="Its weight is 1 for every query."):
        q, k, v, do = sized(16, 1)
        right("", torch.zeros_like(q), k, v, do)

    with answer.property("one tile of queries, one of keys: dv", why="P = 2^(s − lse), then dV = Pᵀ dO."):
        right("dv", *sized(16, 16))

    with answer.property("one tile of queries, one of keys: dk", why="dS = P ∘ (dP − delta), then dK = dSᵀ Q."):
        right("dk", *sized(16, 16))

    with answer.property(
        "a scale of one's own", why="scale_log2 is in s, and the skeleton's scale is in dk: once each.",
        hint="Which of scale and scale_log2 does your loop use? The other one is in the skeleton's last lines.",
    ):  # fmt: skip
        right("", *sized(16, 16), scale=0.3)

    with answer.property("many tiles of queries", why="A program's dk and dv are sums over all queries."):
        right("", *sized(32, 16))

    with answer.property("many programs, each with its own keys", why="A program knows its keys by its number."):
        right("", *sized(16, 32), block_n=16)

    with answer.property(
        "tiles that are not square", why="Scores are (BLOCK_M, BLOCK_N), or the other way round.",
        hint="Write the shape behind each line of your loop. Which of BLOCK_M and BLOCK_N is the step, which the rows?",
    ):  # fmt: skip
        right("", *sized(32, 16), block_m=32, block_n=16)
        right("", *sized(16, 32), block_m=16, block_n=32)

    with answer.property(
        "ragged ends of queries and keys", why="The masks are those of lesson 04's repairs.",
        hint="Of the last tile, some rows do not exist. Which loads would touch them, and what do they add instead?",
    ):  # fmt: skip
        for Tq, Tk in ((7, 16), (17, 5)):
            right("", *sized(Tq, Tk))

    with answer.property(
        "heads of any size", why="BLOCK_DK and BLOCK_DV are powers of two, DK and DV are not.",
        hint="Which loads reach beyond the head's size: those of q, or of do? Each has a mask of its own.",
    ):  # fmt: skip
        right("", *sized(16, 16, Dk=5, Dv=20))

    with answer.property(
        "many heads, many sequences", why="program_id(1) counts the key heads of all sequences.", hint=ROWS
    ):
        right("", *sized(16, 16, B=2, Hkv=3))

    with answer.property(
        "grouped queries: dk and dv are sums over all heads of the group",
        why="All heads of a group pass through one program, which sums over them: nobody else adds to its dk.",
        hint=ROWS,
    ):
        right("", *sized(8, 16, G=2, Hkv=2))
        right("", *sized(7, 16, B=2, G=3))

    with answer.property(
        "tensors that lie as (B, T, H, D)", why="Strides are given for batch, head and token.",
        hint="q and do have three strides each, of their own. lse_log2 and delta have none: they are contiguous.",
    ):  # fmt: skip
        right("", *sized(5, 9, B=2, G=2, Hkv=2, Dv=24), tokens_first=True)

    with answer.property("causal, one head", why="Row r is query r; it sees the keys up to r + Tk − Tq."):
        for Tq, Tk in ((5, 21), (17, 17)):
            right("", *sized(Tq, Tk), causal=True)

    with answer.property(
        "causal, grouped", why="It is the query that sees so far, not the row: r // G + Tk − Tq.", hint=ROWS
    ):
        right("", *sized(9, 20, G=3), causal=True)  # key 16 is first seen by query 5, whose row 15 ends a tile
        right("", *sized(32, 32, G=2), causal=True)  # key 16's first row is 32, with heads stacked, too: but of head 1

    with answer.property(
        "rows without a key have no part in it", why="Their lse_log2 is given as +∞: 2^(s − ∞) = 0.",
        hint="With more queries than keys, first_key − (Tk − Tq) is above 0 at once: where does the loop begin?",
    ):  # fmt: skip
        right("", *sized(24, 7), causal=True)

    with answer.property(
        "what is hidden may be far above what is seen", why="2^(s − lse) overflows there, and ∞ · 0 is no number.",
        hint="What is 2^(s − lse) of a key that is hidden, if its score is a hundred above the lse? Then select.",
    ):  # fmt: skip
        q, k, v, do = sized(16, 16)
        k = k + 40 * torch.arange(16.0)[:, None]
        right("dv", q.abs(), k, v, do, causal=True, tolerance=1e-2)

    with answer.property(
        "float16, summed in float32", why="tl.dot gives float32: dv += …, dk += …, in float32.",
        hint="Which types do dk and dv have at the end of a step? Both began in float32, and both must still be.",
    ):  # fmt: skip
        # Sixteen keys that weigh 1/16 each: everything is exact in float16, but for the sum. The last tile of queries
        # takes away nearly all that the first one adds, 256 times as much as what remains. Where a sum, or what is
        # added to it, is rounded to float16 in between, what remains is lost.
        q, k, v, do = sized(48, 16)
        q, k, v, do = q.half(), torch.zeros_like(k).half(), v.round().clamp(-2, 2).half(), do.sign().half()
        for only, x in (("dv", do), ("dk", q)):
            given = {"dv": do, "dk": q} | {only: _nearly_taken_back(x)}
            right(only, given["dk"], k, v, given["dv"], tolerance=2e-3)

    with answer.property(
        "float16, with scores, lse and delta in float32", why="Near 100, a number in float16 has a step of 1/16.",
        hint="What has been in float32 stays there until a product wants it: which lines convert s, lse or delta?",
    ):  # fmt: skip
        q, k, v, do = sized(16, 16)
        q[..., 0], k[..., 0] = 20.0, 20.0  # scores near 100
        right("dv", *(x.half() for x in (q, k, v, do)), tolerance=HALF)
        q, k, v, do = sized(16, 16)  # dP and delta near 4,000, and their difference near 30
        right("dk", *(x.half() for x in (q, k, 1024 + 8 * v, do)), tolerance=4e-2)

    with answer.property(
        "all of it together: options, sizes, tiles, strides and precision",
        why="A model in 16 bits asks for all of them at once.",
        hint="Which line holds only where another option is not set: a mask for one head, a stride of one tensor for "
        "another, a scale that was there before?",
    ):
        right("", *sized(7, 18, B=2, G=3, Dk=24, Dv=8), causal=True, scale=0.3, block_n=32, tokens_first=True)
        right(
            "", *sized(9, 20, B=2, G=2, Hkv=2, Dk=8, Dv=24, half=True), causal=True, scale=0.6, block_m=32,
            block_n=32, tokens_first=True, tolerance=HALF,
        )  # fmt: skip
        right("", *sized(21, 9, G=2, Hkv=2, Dv=20), causal=True, block_m=32, tokens_first=True)
        right("", *sized(19, 7, G=3, Dk=20, half=True), scale=0.2, tokens_first=True, tolerance=HALF)

    with answer.property(
        "products as told: of float16 as it is, of float32 with PRECISION",
        why="Tensor cores multiply half precision. And without PRECISION, a GPU would round float32 to tf32.",
        hint="Four products, each by tl.dot. Write down the types of both operands, and look for input_precision.",
    ):
        for half, kind in ((False, "fp32"), (True, "fp16")):
            run = right("", *sized(16, 16, half=half), tolerance=2e-2)
            answer.products(run, 4 * 16**3, kind)
        run = right("", *sized(8, 16, G=2, half=True), causal=True, scale=0.3, tolerance=2e-2)
        answer.products(run, 4 * 16**3, "fp16")

    def walked(*tensors, rows: int, steps: int, programs: int, tolerance=None, **options) -> None:
        """Its programs load so many rows together, in so many steps, and what is theirs once."""
        q, k, v, do = tensors
        run = right("", *tensors, tolerance=tolerance, **options)
        row = (q.shape[3] + do.shape[3]) * q.itemsize + 2 * 4  # and two numbers in float32
        answer.traffic(run, loaded=k.nbytes + v.nbytes + rows * row, stored=k.nbytes + v.nbytes)
        block_m, block_n = options.get("block_m", 16), options.get("block_n", 16)
        wide = [max(16, 1 << (x.shape[3] - 1).bit_length()) for x in (q, v)]  # columns of a tile
        answer.products(run, steps * 2 * block_m * block_n * sum(wide), "fp16" if q.dtype == torch.half else "fp32")
        answer.tiles(run, loads=2 * programs + 4 * steps, dots=4 * steps)

    with answer.property(
        "q and do are loaded once a program, for all heads", why="Each program walks over them once.",
        hint="Per step of the loop: one tile each of q, do, lse and delta. k and v were loaded before it.",
    ):  # fmt: skip
        walked(*sized(16, 32, G=2), rows=2 * 32, steps=4, programs=2)
        walked(*sized(13, 20, G=3, Dv=32, half=True), rows=39, steps=2, programs=1, block_m=32, block_n=32,
               scale=0.3, tokens_first=True, tolerance=HALF)  # fmt: skip

    with answer.property(
        "causal: queries that see none of the tile's keys are not loaded", why="Half of the work of a long sequence.",
        hint="Which is the first query that sees first_key? Which row is that, with G heads, and in which tile is it?",
    ):  # fmt: skip
        # Of the 64 rows, in four tiles, the two programs see all and the last two.
        walked(*sized(32, 32, G=2), rows=64 + 32, steps=4 + 2, programs=2, causal=True)
        # With a cache: keys 32 to 39 are first seen by query 8, which is row 24.
        walked(*sized(16, 40, G=3, half=True), rows=48 + 48 + 32, steps=3 + 3 + 2, programs=3, causal=True,
               scale=0.3, tolerance=HALF)  # fmt: skip
        # The first 16 queries see no key at all.
        walked(*sized(24, 8, B=2, Dv=24), rows=2 * 8, steps=2, programs=2, causal=True, tokens_first=True)


def _given(q, k, v, do, *, causal=False, scale=None) -> tuple[Tensor, ...]:
    """What the kernel is given: with lse and delta, of the exact forward pass."""
    o, lse = exact(*(x.double() for x in (q, k, v)), causal=causal, scale=scale)
    return q, k, v, lse, (do.double() * o).sum(dim=-1).float(), do


def _nearly_taken_back(x: Tensor) -> Tensor:
    """(…, 48, D) whose last 16 rows are the negative of the first 16, but for what is 256 times as small."""
    first, middle, last = x.split(16, dim=2)
    return torch.cat((256 * first, middle, last - 256 * first), dim=2)


def _within_rows(x: Tensor, gap: int) -> Tensor:
    """The same (B, H, T, D) as columns of a matrix (B, T, H·D + gap). The columns beyond are nobody's: NaN."""
    B, H, T, D = x.shape
    view = x.new_full((B, T, H * D + gap), float("nan"))[:, :, : H * D].unflatten(2, (H, D)).transpose(1, 2)
    return view.copy_(x)
