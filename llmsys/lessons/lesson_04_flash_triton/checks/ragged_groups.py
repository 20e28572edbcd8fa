"""04.ragged_groups: the whole kernel, with grouped queries, heads of any size and ragged ends."""

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.common import exact, multiples
from llmsys.lessons.lesson_04_flash_triton.checks.launched import (
    BEYOND,
    CAUSALLY,
    FLASH,
    IN_HALF,
    LIBRARY,
    TYPES,
    fading,
    far_from_zero,
    grouped,
)


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
        right(*draw(17, 19, B=2), scale=0.3)

    with answer.property("heads of any size", why="BLOCK_DK and BLOCK_DV are powers of two, DK and DV are not."):
        right(*draw(16, 16, Dk=5, Dv=20))
        right(*draw(9, 20, Dk=24, Dv=8), block_m=32, block_n=32)

    with answer.property(
        "grouped queries: query head h reads key head h // G",
        why="A tile holds the rows of all heads of a group, and one tile of keys serves them.",
    ):
        right(*draw(8, 16, G=2, Hkv=2))
        right(*draw(5, 16, G=5))

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
        right(*draw(9, 20, G=2, Dk=24, Dv=8), causal=True, block_m=32, block_n=32)

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
        for heads in (fading(answer, 512), far_from_zero(answer)):
            q, k, v = (x[None, None] for x in heads)
            answer.matches(exact(q, k, v), q, k, v, rtol=2e-3, atol=2e-3)
        q, k, v = draw(16, 720, half=True)  # weights that are all 1, and values near 100: their sum is above 65,504
        q, v = q * 0, v + 100
        answer.matches(exact(q, k, v), q, k, v, block_n=64, rtol=2e-3, atol=2e-3)

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
        "the launcher decides how precise float32 is", why="tf32 has ten bits of mantissa, and is many times as fast.",
        hint="Which argument says it, and do both products ask it?",
    ):  # fmt: skip
        q, k, v = draw(16, 16)
        for precision, kind in (("tf32", "tf32"), ("ieee", "fp32")):
            run = answer(q, k, v, precision=precision)
            answer.products(run, 2 * 16**3, kind)
            answer.equal(run, exact(q, k, v), rtol=2e-2, atol=2e-2)

    with answer.property(
        "k and v are loaded once a program, for all heads of the group", why="That is what packing them is for."
    ):
        q, k, v = draw(16, 16, G=2)
        run = answer(q, k, v)
        programs = 2  # 32 rows, in tiles of 16
        answer.traffic(run, loaded=q.nbytes + programs * (k.nbytes + v.nbytes), stored=q.nbytes + q.nbytes // 16)
        answer.equal(run, exact(q, k, v))
        q, k, v = draw(8, 64, G=2, Dv=8, half=True)
        run = answer(q, k, v, block_n=64)
        answer.products(run, 2 * 16 * 64 * 16, "fp16")
        answer.tiles(run, dots=2)
        answer.equal(run, exact(q, k, v), rtol=2e-3, atol=2e-3)

    with answer.property("causal: tiles that no row of the program sees are skipped", why="As in (b)."):
        q, k, v = draw(48, 48)
        run = answer(q, k, v, causal=True)
        tiles = 1 + 2 + 3  # the last query of the three programs is 15, 31 or 47
        answer.traffic(run, loaded=q.nbytes + tiles * 16 * 2 * 64, stored=q.nbytes + q.nbytes // 16)
        answer.equal(run, exact(q, k, v, causal=True))

    with answer.property(
        "row r is query r // G of head r % G: the rows of a tile span few queries",
        why="Neighbouring queries see nearly the same keys, so the program's loop can end early.",
        hint="With G = 2, which queries are the first 32 rows of a key head, and which is the last key that they see?",
    ):
        q, k, v = draw(64, 64, G=2)
        run = answer(q, k, v, causal=True, block_m=32)
        tiles = 1 + 2 + 3 + 4  # the last query of the four programs is 15, 31, 47 or 63, and sees as many tiles of 16
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
