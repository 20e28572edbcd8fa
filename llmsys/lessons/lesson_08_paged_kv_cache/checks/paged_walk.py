"""08.paged_walk: attention through a block table."""

import torch

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.common import multiples
from llmsys.lessons.lesson_08_paged_kv_cache.decoding import Step, draw, with_kernel

LOADED = "tl.load(table_ptr + sequence * table_stride + keys // PAGE, mask=written"  # as the solution does it
HALF = {"rtol": 2e-3, "atol": 2e-3}


@exercise_check(
    "08.paged_walk",
    reference="llmsys.attention.paged.one_token_kernel:one_token_kernel",
    forbids=(
        "llmsys.attention.paged.walk:*", "llmsys.attention.paged.ragged_kernel:*",
        "llmsys.attention.paged.split_kernels:*", "llmsys.attention.flash.kernels:*",
        "llmsys.attention.one_head:one_head_kernel", "triton.language.standard:softmax",
    ),
    adapt=with_kernel,
    hints=(
        "Take one tile of keys, of which the first is number `start`. Write down for each of its keys: is it there, "
        "on which page of the sequence, which page of the memory is that, and in which slot? All else is lesson 04's "
        "loop.",
        "Key j of the sequence is in slot j % PAGE of page table[j // PAGE], and the sequence's row of the table "
        "begins at sequence · table_stride. Three loads of a tile, each masked by what is there: the numbers of its "
        "pages (keys < length), k, and v (the same, and d < D). The score of a key that does not exist is −∞. Where "
        "there was no key at all, l is 0.",
        "length = load(lengths_ptr + sequence)\n"
        "for start in range(0, length, BLOCK_N):\n"
        "    keys = start + arange(BLOCK_N);  written = keys < length\n"
        "    page = load(table_ptr + sequence·table_stride + keys // PAGE, where written), in 64 bits\n"
        "    k = load(k_ptr + page·k_stride_page + (keys % PAGE)·k_stride_slot + head·k_stride_head + d, where there)\n"
        "    s = dot(q, trans(k)) * scale_log2;  s = −∞ where not written\n"
        "    m, l, o as in lesson 04, with v from its own strides\n"
        "store o / (l, or 1 where l is 0) for the rows and columns that exist;  lse = (m + log2 of the same) · ln 2",
    ),
    equivalent={
        "0 → 1 (3)": "the page of a key that does not exist is not read, whichever it is",
        f"{LOADED}, other=0) → {LOADED})": "the page of a key that does not exist is not read, whichever it is",
        "0.0 → 1.0": "the score of a key that does not exist is hidden, and a column beyond D meets a zero of q",
        "0.0 → 1.0 (2)": "the weight of a value that does not exist is 0, and a column beyond D is not stored",
        "0 → 1 (4)": "the largest weight is 1, so their sum is never between",
        "1.0 → 2.0": "0 / 2 is 0, and −∞ + log2(2) is −∞",
    },
)  # fmt: skip
def paged_walk(answer: Answer) -> None:
    def right(step: Step, *, half: bool = False, **options):
        return answer.matches(step.expected, *step.given, **options, **(HALF if half else {}))

    with answer.property("one page, values that are all alike: o is that value", why="Weights sum to one."):
        step = draw(answer, [16], G=16, in_order=True, change=lambda q, k, v: (q, k, [v[0] * 0 + 0.5]))
        answer.matches(step.expected[0], *step.given, only="o")

    with answer.property(
        "one page, which is full: o", why="The page is wherever there was room: its number is in the table."
    ):
        step = draw(answer, [16])
        answer.matches(step.expected[0], *step.given, only="o")

    with answer.property("its log-sum-exp", why="m + ln l, in natural logarithms and in fp32."):
        right(draw(answer, [16], D=32))

    with answer.property("a single key: o is its value, and lse its score", why="A softmax over one score is 1."):
        right(draw(answer, [1]))

    with answer.property(
        "three pages, in the table's order", why="Key j is in slot j % PAGE of page table[j // PAGE].",
        hint="Which entry of the table has key 17's page, and at which slot of it is the key?",
    ):  # fmt: skip
        right(draw(answer, [48]))

    with answer.property(
        "lengths that end within a page, or one past it",
        why="What lies beyond is nobody's: slots hold NaN, and 0 · NaN is NaN; entries of the table are −1 or huge.",
        hint="What may be loaded for a key that does not exist: its entry of the table, its k, its v? And what must "
        "its score be?",
    ):
        for length in (7, 17, 47):
            right(draw(answer, [length]))

    with answer.property(
        "a table that ends with the last page", why="Nothing comes behind it, and the last tile may go further."
    ):
        right(draw(answer, [20, 33], page=8, spare=0), block_n=32)

    with answer.property(
        "sequences of different lengths", why="A row of the table each, as long as a row is; a length each."
    ):
        right(draw(answer, [33, 5, 16], spare=2))

    with answer.property(
        "several key heads", why="A slot has all heads of its token: this program's is k_stride_head further on."
    ):
        right(draw(answer, [18, 9], Hkv=3))

    with answer.property(
        "grouped query heads are the rows of a tile",
        why="Query head h · G + g reads key head h: all G of them share the keys that are loaded.",
    ):
        right(draw(answer, [19], G=3, Hkv=2))
        right(draw(answer, [5, 21], G=4))
        right(draw(answer, [17], G=20))  # a tile of 32 rows

    with answer.property(
        "pages that are larger than a tile, smaller, and neither in the other",
        why="A tile of BLOCK_N keys may begin and end anywhere in a page.",
        hint="Which of your lines take BLOCK_N for PAGE? Both may be anything, and each key asks for its own page.",
    ):
        for length, page, block_n in ((70, 64, 16), (50, 16, 32), (60, 24, 16), (45, 20, 32), (90, 40, 64)):
            right(draw(answer, [length], page=page), block_n=block_n)

    with answer.property(
        "heads of 64, 80 and 96", why="BLOCK_D is a power of two: columns from D on belong to the next head."
    ):
        right(draw(answer, [17], D=64))
        right(draw(answer, [17, 3], D=80, G=2, Hkv=2))
        right(draw(answer, [20], D=96, G=3, page=24))

    with answer.property(
        "a sequence without a key: o = 0, lse = −∞", why="A step may have such a row: it must not become NaN.",
        hint="How often does its loop run, and what are m, l and o after that? And do its neighbours stay right?",
    ):  # fmt: skip
        right(draw(answer, [0, 17, 0]))
        right(draw(answer, [0], G=3))

    with answer.property(
        "pages of one layer in a larger cache, keys and values laid out differently; long rows of the table",
        why="That is what strides are for: seven of them, none of which follows from a size.",
        hint="Which line uses which of the seven? v has three of its own.",
    ):
        right(draw(answer, [19, 34], Hkv=2), apart=True)
        right(draw(answer, [33, 7], G=3, Hkv=2, D=24, page=20), apart=True, block_n=32)

    with answer.property(
        "page numbers whose address needs more than 32 bits",
        why="2^31 elements are soon reached where all layers lie in one tensor. `page * stride` wraps around there.",
        hint="Of which type is the number of a page when it is multiplied by the stride? A product of two numbers of "
        "32 bits has 32 bits, whatever it is turned into afterwards.",
    ):
        right(draw(answer, [20, 0, 33], Hkv=2), far=True)

    with answer.property("logits of ±10,000, and a scale of one's own", why="No exponent is ever positive."):
        step = draw(answer, [40], scale=0.5, change=lambda q, k, v: (multiples(q * 1e4, 128), [k[0].round()], v))
        right(step, scale=0.5)

    with answer.property("scores of −1,000,000", why="m begins below all scores, and no number is: only −∞."):
        step = draw(answer, [20], change=lambda q, k, v: (-multiples(q.abs() * 1e6, 2**14), [k[0].abs().round()], v))
        right(step, rtol=1e-2, atol=1e-2)

    with answer.property(
        "float16, with sums and lse in float32", why="Products in half precision, sums in full.",
        hint="Which types do l, o and m have at the end of a turn? They began in float32, and must still be.",
    ):  # fmt: skip
        right(draw(answer, [40, 3], G=2, half=True), half=True)
        step = draw(answer, [40, 9], G=3, half=True)
        answer.matches(step.expected[1], *step.given, only="lse")  # to float32's own tolerance
        step = draw(answer, [1040], page=64, half=True, change=_fading)
        right(step, half=True, block_n=64)
        answer.matches(step.expected[1], *step.given, only="lse", block_n=64)
        right(draw(answer, [48], half=True, change=_far_from_zero), half=True)
        step = draw(answer, [720], page=48, half=True, change=lambda q, k, v: (q * 0, k, [v[0] + 100]))
        right(step, half=True, block_n=64)  # values near 100: their sum is above 65,504

    with answer.property(
        "both products multiply numbers as they are: float16 as float16, float32 in full",
        why="Tensor cores multiply float16, and float32 is many times slower. Where q is float32, nothing is lost.",
        hint="Write down the type of each operand of tl.dot: of q and k, and of P and v. A product takes two of one "
        "type.",
    ):
        step = draw(answer, [16], half=True)
        run = answer(*step.given)
        answer.products(run, 2 * 16**3, "fp16")
        answer.equal(run, step.expected, **HALF)
        step = draw(answer, [16])
        run = answer(*step.given)
        answer.products(run, 2 * 16**3, "fp32")
        answer.equal(run, step.expected)

    with answer.property(
        "a key is loaded once for all heads of its group, and nothing else is",
        why="Decoding is the time that it takes to read K and V. A slot that no length reaches is not read.",
        hint="How many bytes have the keys and values of the sequence? What else do you load, and how often?",
    ):
        for lengths, G, Hkv, page, block_n in (([33, 20], 3, 2, 16, 16), ([70], 1, 1, 24, 64)):
            step = draw(answer, lengths, G=G, Hkv=Hkv, page=page, D=32)
            run = answer(*step.given, block_n=block_n)
            keys, programs = Hkv * sum(lengths), Hkv * len(lengths)
            q_bytes = step.given[0].nbytes
            small = 2 * 4 * keys + 4 * 4 * programs  # the table twice, for k and for v; lengths
            answer.traffic(run, loaded=q_bytes + keys * 2 * 32 * 4 + small, stored=q_bytes + q_bytes // 32)
            tiles = Hkv * sum(-(-length // block_n) for length in lengths)
            answer.products(run, tiles * 2 * 16 * block_n * 32, "fp32")
            answer.tiles(run, dots=2 * tiles)
            answer.equal(run, step.expected)

    with answer.property(
        "all of it together", why="A model has groups, heads of any size, 16 bits and short sequences at the same time."
    ):
        for lengths, options, launched in (
            ([35, 0, 1], {"G": 3, "Hkv": 2, "D": 24, "page": 10, "half": True}, {"apart": True}),
            ([0, 41], {"G": 2, "Hkv": 3, "D": 80, "page": 16, "scale": 0.3}, {"block_n": 32, "apart": True}),
            ([64, 65], {"G": 4, "D": 64, "page": 64, "half": True, "scale": 0.2}, {"block_n": 64}),
        ):
            for _ in range(2):  # the same shapes, and other numbers
                step = draw(answer, lengths, **options)
                right(step, half=options.get("half", False), scale=options.get("scale"), **launched)


def _fading(q, k, v):
    """Sixteen keys that weigh 1, and many that weigh e^-10.2 each: a running sum in half precision, with its steps of
    1/64, takes in nothing of a tile of 64 of them, though all together they are to be seen in o and lse."""
    first = (torch.arange(len(k[0])) < 16)[:, None, None]
    q, k, v = q / 64, torch.where(first, 0.0, k[0]), torch.where(first, 1.0, 3.0) + v[0].abs() / 8
    q[..., 0], k[..., 0] = 4.0, torch.where(first[..., 0], 0.0, -10.2)
    return q, [k], [v]


def _far_from_zero(q, k, v):
    """Scores near 100, where a number in half precision has a step of 1/16."""
    q[..., 0], k[0][..., 0] = 20.0, 20.0
    return q, k, v
