"""The checks of lesson 01, the memory wall."""

import math

import torch

from llmsys.attention import cost, naive
from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.course.checking.watch import FUSED_ATTENTION
from llmsys.hardware import roofline
from llmsys.lessons.common import exact, later_stages, multiples, tokens_first

FIGURES = ("flops", "score_elements", "hbm_bytes", "saved_bytes")


def one_figure(naive_cost):
    """The cost's function, asked for one figure by its name, so that a mistake in another one does not hide it."""

    def figure(B: int, H: int, T: int, D: int, *, name: str | None = None, **options):
        costs = naive_cost(B, H, T, D, **options)
        return costs if name is None else costs[FIGURES.index(name)]

    return figure


@exercise_check(
    "01.naive_cost",
    reference=cost.naive_cost,
    forbids=("llmsys.attention.cost:*",),
    adapt=one_figure,
    hints=(
        "Take one head first. How many dot products of length D make S, and what does one of them cost? Then go "
        "through the three kernels, and for each write down what it reads and what it writes.",
        "S and P have B·H·T·T elements each; q, k, v and o have B·H·T·D each. A product with n results, each a dot "
        "product of length d, takes 2·n·d operations. Between the three kernels, S and P are written once and read "
        "once.",
        "scores = B·H·T·T;  rows = B·H·T·D\n"
        "flops  = 2·scores·D (q kᵀ) + 2·scores·D (P v)\n"
        "hbm    = itemsize · (q kᵀ: 2·rows + scores;  softmax: scores + scores;  P v: scores + rows + rows)\n"
        "saved  = itemsize · scores                   (P; S is not needed once P is there)",
    ),
)
def naive_cost(answer: Answer) -> None:
    def counted(B, H, T, D, **options):
        return cost.naive_cost(B, H, T, D, **options)

    def figure(name: str, *shapes, **options) -> None:
        for shape in shapes:
            answer.matches(counted(*shape, **options)[FIGURES.index(name)], *shape, name=name, **options)

    def drawn() -> tuple[int, ...]:
        return tuple(int(answer.randint(low, high)) for low, high in ((2, 9), (2, 17), (20, 300), (8, 129)))

    with answer.property("four counts, all of them int", why="Half a byte does not cross, and 2⁴⁸ is no rounding."):
        run = answer(1, 1, 8, 4)
        answer.form(run, (0, 0, 0, 0))

    with answer.property(
        "a score for each query and key, in every head",
        why="Each head of each sequence has its own. They are counted in elements, and S alone.",
    ):
        figure("score_elements", (1, 1, 8, 4), (1, 1, 100, 4), (1, 6, 50, 16), (3, 6, 50, 16), drawn())

    with answer.property(
        "two products, each a multiply and an add for every score and every element of a head",
        why="T² dot products of length D make S; T · D of length T make o.",
    ):
        figure("flops", (1, 1, 9, 4), (1, 1, 80, 4), (1, 1, 8, 64), (1, 5, 50, 16), (3, 5, 50, 16), drawn())

    with answer.property(
        "S and P are written and read; q, k, v and o cross once",
        why="A kernel takes its operands from memory and leaves its result there, where the next one finds it.",
    ):
        figure("hbm_bytes", (1, 1, 64, 4), (1, 1, 4, 64), (1, 5, 50, 16), (3, 5, 50, 16), drawn())

    with answer.property(
        "what autograd keeps, beside q, k and v",
        why="The softmax's derivative is written in its output, and the second product needs P anyway.",
    ):
        figure("saved_bytes", (1, 1, 64, 4), (1, 1, 4, 64), (3, 5, 50, 16), drawn())

    with answer.property(
        "an element of any size",
        why="A count of elements is not one of bytes: 4 in fp32, 1 in fp8.",
        hint="Which of the four figures are bytes? Those, and no other, have itemsize in them, once.",
    ):
        shape = drawn()
        for itemsize in (4, 1, 8, 2):  # of one shape, so that nothing is remembered by the shape alone
            for name in FIGURES:
                figure(name, shape, itemsize=itemsize)

    with answer.property(
        "a thousand sequences of 4k tokens with 32 heads", why="2³⁹ scores, 2⁴⁸ operations, a tebibyte of P."
    ):
        shape = (1024, 32, 4096, 128)
        answer.matches(tuple(counted(*shape)), *shape)
        # As many tokens as a head is large; odd counts; and more than a float can count one by one, 2⁵³.
        for shape in ((2, 3, 24, 24), (3, 5, 7, 9), (262145, 33, 4097, 129)):
            answer.matches(tuple(counted(*shape, itemsize=1)), *shape, itemsize=1)


@exercise_check(
    "01.naive_attention",
    reference=naive.naive_attention,
    forbids=(*FUSED_ATTENTION, "llmsys.attention.naive:*", *later_stages("naive")),
    hints=(
        "Begin without options: scores, softmax over the keys, weights times v. Then one option at a time, in the "
        "order of the check's properties; each is one line.",
        "Query head h reads key head h // G. With causal, query i sees key j where j ≤ i + Tk − Tq: everything else "
        "is −∞ before the softmax. A row of nothing but −∞ has no softmax (0/0): its weights are to be 0, its "
        "lse −∞.",
        "G = Hq // Hkv;  k, v = each head G times in a row (repeat_interleave over dim 1)\n"
        "s = (q @ k.mT).float() * scale                            (B, Hq, Tq, Tk)\n"
        "if causal: s = s.masked_fill(key > query + Tk − Tq, −∞)   key (Tk,), query (Tq, 1): torch.arange\n"
        "p = softmax(s, over keys), and 0 in the rows that see no key\n"
        "o = p.to(v.dtype) @ v;  lse = logsumexp(s, over keys)",
    ),
)
def naive_attention(answer: Answer) -> None:
    def draw(Tq: int, Tk: int, *, B=1, G=1, Hkv=1, Dk=8, Dv=None, scale=1.0):
        return (
            answer.randn(B, G * Hkv, Tq, Dk, scale=scale),
            answer.randn(B, Hkv, Tk, Dk),
            answer.randn(B, Hkv, Tk, Dv or Dk),
        )

    with answer.property("one query, one key: o is the value", why="A softmax over one score is 1, whatever it is."):
        q, k, v = draw(1, 1)
        answer.matches(v, q, k, v)

    with answer.property(
        "one head: softmax(q kᵀ / √Dk) v", why="Each query's weights sum to one over the keys; Dv may differ from Dk."
    ):
        for Tq, Tk, Dk, Dv in ((5, 5, 8, 8), (4, 9, 16, 16), (6, 3, 8, 2)):
            q, k, v = draw(Tq, Tk, Dk=Dk, Dv=Dv, scale=2.0)
            answer.matches(exact(q, k, v)[0], q, k, v)

    with answer.property("several sequences and heads, each for itself", why="They share nothing but the code."):
        q, k, v = draw(5, 7, B=2, Hkv=3)
        answer.matches(exact(q, k, v)[0], q, k, v)

    with answer.property(
        "a scale of one's own",
        why="Some models have another temperature than 1/√Dk.",
        hint="1/√Dk is for scale=None alone. Where does a scale that was passed go?",
    ):
        q, k, v = draw(4, 6, Hkv=2)
        answer.matches(exact(q, k, v, scale=0.3)[0], q, k, v, scale=0.3)

    with answer.property(
        "the log-sum-exp of each row, if it is asked for",
        why="ln Σ e^s over the scaled scores, in float32: with it, results over parts of the keys can be merged later.",
        hint="It is a number for each query, of the scores that the softmax was taken of: scaled, in float32.",
    ):
        for scale in (None, 0.3):
            q, k, v = draw(4, 6, B=2, Hkv=2, scale=2.0)
            answer.matches(exact(q, k, v, scale=scale), q, k, v, scale=scale, return_lse=True)

    with answer.property(
        "grouped queries: query head h reads key head h // G",
        why="The G query heads that share a key head are neighbours.",
        hint="With Hq = 6 and Hkv = 2, write down which key head each of the six query heads reads.",
    ):
        q, k, v = draw(5, 7, B=2, G=3, Hkv=2)
        answer.matches(exact(q, k, v), q, k, v, return_lse=True)

    with answer.property(
        "causal: a query sees the keys up to its own, and its weights still sum to one",
        why="What is masked has no weight at all, and what is left shares all of it.",
        hint="What must a hidden score be so that the softmax gives it nothing, and the others all?",
    ):
        q, k, v = draw(9, 9, Hkv=2)
        answer.matches(exact(q, k, v, causal=True), q, k, v, causal=True, return_lse=True)

    with answer.property(
        "causal is aligned at the end: with a cache, the last query is the last token",
        why="One new token sees everything that is cached; query i stands at i + Tk − Tq.",
        hint="Take Tq = 1, Tk = 9. Which keys does the one query see? Then Tq = 2.",
    ):
        for Tq, Tk in ((1, 9), (4, 11)):
            q, k, v = draw(Tq, Tk, G=2, Hkv=2)
            answer.matches(exact(q, k, v, causal=True), q, k, v, causal=True, return_lse=True)

    with answer.property(
        "a query that sees no key: o = 0, lse = −∞, and no NaN",
        why="With more queries than keys the first ones come before every key. Of nothing, there is no average.",
        hint="What is softmax of a row of −∞, and what should o be? And logsumexp of it?",
    ):
        q, k, v = draw(8, 5, Hkv=2)
        answer.matches(exact(q, k, v, causal=True), q, k, v, causal=True, return_lse=True)

    with answer.property("logits of ±10,000 overflow nothing", why="The maximum goes before the exponential does."):
        q, k, v = draw(6, 8, Hkv=2, Dk=16, scale=1e4)
        q, k = multiples(q, 128), k.round()
        answer.matches(exact(q, k, v, causal=True), q, k, v, causal=True, return_lse=True)

    with answer.property(
        "bfloat16 in, bfloat16 out; the log-sum-exp stays float32",
        why="o has the dtype of v. A tensor of lse is small, and eight bits of precision are too few for a logarithm.",
        hint="Write down each line's dtype: of s, of p, of o, of lse. Which two does the docstring name?",
    ):
        q, k, v = (x.bfloat16() for x in draw(16, 24, Hkv=2, Dk=32))
        run = answer(q, k, v, return_lse=True)
        answer.form(run, exact(q, k, v))
        o = answer(q, k, v)
        in_bfloat16 = torch.softmax(q @ k.mT / math.sqrt(32), dim=-1) @ v
        answer.accurate(o, exact(q.float(), k.float(), v.float())[0], in_bfloat16, tiny=1e-3)
        # Small scores of many keys: rounding them costs the log-sum-exp 10⁻⁴, and rounding itself costs it 10⁻².
        q, k, v = (x.bfloat16() for x in draw(4, 300, Hkv=2, Dk=32, scale=0.1))
        run = answer(q, k, v, return_lse=True)
        answer.equal(run, (run.value[0], exact(q.float(), k.float(), v.float())[1]), rtol=0.0, atol=2e-3)

    with answer.property(
        "all of it together: options, sizes, precisions and strides",
        why="A model asks for several at once, and its tensors are views of larger ones.",
        hint="Which line assumes something of one option that holds only without another one? Or of a tensor's layout?",
    ):
        tolerances = {torch.float32: 2e-5, torch.float64: 2e-5, torch.bfloat16: 5e-2, torch.float16: 5e-2}
        for (Tq, Tk), (B, G, Hkv), Dv, options, dtype in (  # each pair of options is in one of them
            ((3, 11), (2, 3, 2), 5, {"causal": True, "scale": 0.3}, torch.float32),
            ((3, 11), (1, 2, 1), 8, {"causal": True, "scale": 1.0, "return_lse": True}, torch.float64),
            ((7, 4), (2, 2, 3), 3, {"causal": True, "scale": 0.6, "return_lse": True}, torch.float32),
            ((7, 4), (3, 1, 2), 8, {"causal": True}, torch.bfloat16),
            ((7, 4), (2, 3, 1), 8, {"scale": 0.3}, torch.float32),
            ((5, 5), (2, 1, 1), 9, {"scale": 1.5}, torch.float16),
            ((5, 5), (1, 3, 2), 3, {"causal": True, "scale": 0.5, "return_lse": True}, torch.float16),
            ((1, 13), (3, 2, 2), 3, {"causal": True, "return_lse": True}, torch.bfloat16),
            ((1, 13), (2, 1, 3), 8, {"scale": 0.3, "return_lse": True}, torch.float64),
        ):
            for layout in (answer.spread, tokens_first):  # and the same shape twice
                q, k, v = (x.to(dtype) for x in draw(Tq, Tk, B=B, G=G, Hkv=Hkv, Dk=6, Dv=Dv))
                o, lse = exact(q, k, v, **{"causal": False} | {x: options[x] for x in options if x != "return_lse"})
                expected = (o, lse) if "return_lse" in options else o
                tolerance = tolerances[dtype]
                answer.matches(expected, *map(layout, (q, k, v)), rtol=tolerance, atol=tolerance, **options)


@exercise_check(
    "01.roofline_seconds",
    reference=roofline.roofline_seconds,
    forbids=("llmsys.hardware.roofline:*",),
    hints=(
        "How long does one kernel take whose arithmetic needs 3 s and whose traffic needs 2 s, if both go on at once? "
        "And when does the next kernel begin?",
        "Within a kernel the two overlap, and the longer one counts. Kernels wait for each other: their times add up.",
        "seconds = 0\n"
        "for flops, size in operations:\n"
        "    seconds = seconds + max(flops / peak_flops, size / bandwidth)",
    ),
)
def roofline_seconds(answer: Answer) -> None:
    machine = {"peak_flops": 100e12, "bandwidth": 2e12}  # ridge at 50

    def seconds(expected: float, *operations: tuple[float, float]) -> None:
        answer.matches(expected, list(operations), **machine, rtol=1e-9, atol=1e-15)

    def size() -> float:
        return 1e12 * float(answer.randint(1, 1000))

    with answer.property("nothing to do takes no time", why="A sum over nothing is 0."):
        seconds(0.0)

    with answer.property("a kernel on the ridge: both take equally long", why="They go on at once, and end at once."):
        moved = size()
        seconds(moved / 2e12, (50 * moved, moved))

    with answer.property(
        "one kernel: the longer of its two times",
        why="Above the ridge, bytes arrive while the chip still computes; below it, the chip is done and waits.",
    ):
        moved = size()
        above = answer([(60 * moved, moved)], **machine)
        below = answer([(40 * moved, moved)], **machine)
        answer.equal(above, 60 * moved / 100e12, rtol=1e-9, atol=1e-15)
        answer.equal(below, moved / 2e12, rtol=1e-9, atol=1e-15)

    with answer.property(
        "a kernel that only computes, and one that only moves", why="A copy has no arithmetic, and takes its time."
    ):
        seconds(3.0, (300e12, 0))
        seconds(3.0, (0, 6e12))

    with answer.property(
        "kernels one after another: their times add up",
        why="A kernel that waits for memory cannot borrow the arithmetic of the one after it.",
    ):
        a, b, c = size(), size(), size()
        kernels = [(200 * a, a), (b, b), (60 * c, c)]
        seconds(200 * a / 100e12 + b / 2e12 + 60 * c / 100e12, *kernels)
        seconds(200 * a / 100e12 + b / 2e12 + 60 * c / 100e12, *reversed(kernels))
        seconds(3 * b / 2e12, (b, b), (b, b), (b, b))
        many = [(x, x) if n % 3 else (70 * x, x) for n, x in enumerate(size() for _ in range(13))]
        seconds(sum(max(flops / 100e12, moved / 2e12) for flops, moved in many), *many)

    with answer.property(
        "another machine, another ridge",
        why="Which of the two is late is the machine's doing, too.",
        hint="Which of your numbers is the machine's, and came in as an argument?",
    ):
        moved = size()
        kernels = [(60 * moved, moved), (moved, moved), (500 * moved, moved)]
        answer.matches(
            (300 + 300 + 500) * moved / 900e12, kernels, peak_flops=900e12, bandwidth=3e12, rtol=1e-9, atol=1e-15
        )
        for peak, bandwidth in ((900e12, 2e12), (100e12, 3e12)):  # one of the two alone, and a kernel that does nothing
            expected = sum(max(flops / peak, size / bandwidth) for flops, size in kernels)
            also = [(0, 0), *kernels]
            answer.matches(expected, also, peak_flops=peak, bandwidth=bandwidth, rtol=1e-9, atol=1e-15)
