"""04.inner_loop: the loop over tiles of keys."""

from llmsys.attention.naive import naive_attention
from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.common import multiples
from llmsys.lessons.lesson_04_flash_triton.checks.launched import (
    IN_HALF,
    LIBRARY,
    ONE_HEAD,
    TYPES,
    below_zero,
    draw,
    exact_head,
    fading,
    far_from_zero,
    one_head,
)


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
        q, k, v = draw(answer, 16, 16)
        answer.matches(v[:1].expand(16, -1).clone(), q, k, v[:1].expand(16, -1).clone())

    with answer.property(
        "one tile of queries, one of keys", why="From nothing to softmax(q kᵀ · scale) v in one step."
    ):
        q, k, v = draw(answer, 16, 16)
        answer.matches(exact_head(q, k, v), q, k, v)

    with answer.property("many tiles of keys", why="When the maximum rises, both running sums shrink: l and o."):
        q, k, v = draw(answer, 32, 48, scale=3.0)
        k = k[(k @ q[0]).argsort()]  # for the first query, the maximum rises in every tile
        answer.matches(exact_head(q, k, v), q, k, v)

    with answer.property("a head larger than a tile, and a smaller one", why="The products contract over D, not keys."):
        for D, block_n in ((64, 16), (16, 64)):
            q, k, v = draw(answer, 16, 64, D)
            answer.matches(exact_head(q, k, v), q, k, v, block_n=block_n)

    with answer.property("many programs, each with its own queries", why="A program knows its rows by its number."):
        for block_m, block_n in ((32, 16), (16, 32)):
            q, k, v = draw(answer, 64, 32)
            answer.matches(exact_head(q, k, v, scale=0.3), q, k, v, block_m=block_m, block_n=block_n, scale=0.3)

    with answer.property(
        "tokens that lie apart: equal distances in q and k",
        why="A head is a slice of a wider matrix: from token to token is a stride, not D.",
    ):
        q, k, v = draw(answer, 16, 32)
        answer.matches(exact_head(q, k, v), q, k, v, gaps=(8, 8, 8))

    with answer.property("tokens that lie apart: three different distances", why="k and v need not lie as q does."):
        q, k, v = draw(answer, 16, 32)
        answer.matches(exact_head(q, k, v, scale=1.0), q, k, v, scale=1.0, gaps=(8, 0, 24), o_gap=8)

    with answer.property("logits of ±10,000 overflow nothing", why="No exponent is ever positive."):
        q, k, v = draw(answer, 16, 32, scale=1e4)
        q, k = multiples(q, 128), k.round()
        k = k[(k @ q[0]).argsort()]  # the last tile has the first query's maximum
        answer.matches(exact_head(q, k, v), q, k, v)
        q, k, v = below_zero(answer, 16, 32, 16, 1e6)
        answer.matches(exact_head(q, k, v), q, k, v, rtol=1e-3, atol=1e-3)

    with answer.property(
        "float16 inputs, summed in float32", why="Products in half precision, sums in full.",
        hint="Which types do l and o have at the end of a step? Both began in float32, and both must still be.",
    ):  # fmt: skip
        q, k, v = (x.half() for x in draw(answer, 16, 48))
        naive = naive_attention(*(x[None, None] for x in (q, k, v)))[0, 0]
        answer.accurate(answer(q, k, v), exact_head(q.double(), k.double(), v.double()), naive, tiny=1e-4)
        for q, k, v in (fading(answer, 1040), far_from_zero(answer)):
            answer.matches(exact_head(q, k, v), q, k, v, rtol=2e-3, atol=2e-3)

    with answer.property("both products multiply float16 as it is", why=IN_HALF, hint=TYPES):
        q, k, v = (x.half() for x in draw(answer, 16, 16))
        run = answer(q, k, v)
        answer.products(run, 2 * 16**3, "fp16")
        answer.equal(run, exact_head(q, k, v), rtol=2e-3, atol=2e-3)

    with answer.property("k and v are loaded once a program", why="The one pass is what all of this was for."):
        q, k, v = draw(answer, 32, 32)
        run = answer(q, k, v)
        answer.traffic(run, loaded=q.nbytes + 2 * (k.nbytes + v.nbytes), stored=q.nbytes)
        answer.equal(run, exact_head(q, k, v))

    with answer.property(
        "products are of whole tiles, and float32 is multiplied in full",
        why="tl.dot rounds float32 to 10 bits of mantissa, unless it is asked for all 23.",
        hint="Which argument of tl.dot says how precise float32 is? And how many keys has a tile?",
    ):
        q, k, v = draw(answer, 16, 128)
        run = answer(q, k, v, block_n=64)
        answer.traffic(run, loaded=q.nbytes + k.nbytes + v.nbytes, stored=q.nbytes)
        answer.products(run, 2 * 16 * 128 * 16, "fp32")
        answer.tiles(run, dots=2 * 2)
        answer.equal(run, exact_head(q, k, v))
