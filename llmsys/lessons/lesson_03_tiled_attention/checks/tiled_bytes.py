"""03.tiled_bytes: how many bytes tiled attention moves."""

from llmsys.attention.cost import tiled_bytes as bytes_moved
from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check


@exercise_check(
    "03.tiled_bytes",
    reference=bytes_moved,
    forbids=("llmsys.attention.cost:*", "llmsys.attention.tiled:*"),
    hints=(
        "Four tensors and lse. Which of them cross once, whatever the tile is? How often do the others?",
        "There are ceil(T / block_q) tiles of queries. Each loads the keys and values that it sees: all T of them, or "
        "with causal those up to its last query.",
        "once  = (T·D of q + T·D of o) · itemsize + T · 4 for lse\n"
        "total = once + for each query tile: seen · 2 · D · itemsize\n"
        "seen  = T, or with causal the number of the tile's last query + 1: min(start + block_q, T)",
    ),
)
def tiled_bytes(answer: Answer) -> None:
    def expected(T, D, block_q, **options):
        return bytes_moved(T, T, D, D, block_q=block_q, **{"itemsize": 4} | options)

    with answer.property("a count of bytes is an int", why="Half a byte does not cross."):
        run = answer(100, 8, 64)
        answer.that(run, lambda r: type(r.value) is int, expected="an int")

    with answer.property("one query tile: everything crosses once", why="If the whole of q fits, so much must move."):
        answer.matches(expected(64, 8, 64), 64, 8, 64)

    with answer.property(
        "several query tiles: K and V cross once for each", why="They stream by a query tile at a time."
    ):
        for T, D, block in ((64, 8, 16), (128, 64, 32), (1024, 128, 128)):
            answer.matches(expected(T, D, block), T, D, block)

    with answer.property(
        "a last tile that is not full still needs all keys", why="Ten rows see as many keys as sixty-four do."
    ):
        for T, D, block in ((74, 8, 64), (17, 4, 16), (5, 4, 64)):
            answer.matches(expected(T, D, block), T, D, block)

    with answer.property(
        "16-bit elements, and lse in 32 bits", why="The log-sum-exp is kept in fp32 in every precision."
    ):
        answer.matches(expected(96, 64, 32, itemsize=2), 96, 64, 32, itemsize=2)

    with answer.property(
        "causal: a query tile loads what it sees", why="The keys up to its last query: more than T/2 on average."
    ):
        run = answer(100, 8, 64, causal=True)
        answer.that(run, lambda r: type(r.value) is int, expected="an int")
        for T, D, block in ((64, 16, 16), (100, 8, 64), (64, 8, 64), (1000, 64, 128), (7, 4, 2)):
            answer.matches(expected(T, D, block, causal=True), T, D, block, causal=True)
        for shape in ((61, 24, 7), (5, 6, 64), (13, 3, 1)):  # with every option, of one shape after the other
            for options in ({"causal": True, "itemsize": 2}, {"itemsize": 8}, {"causal": True, "itemsize": 1}, {}):
                answer.matches(expected(*shape, **options), *shape, **options)
