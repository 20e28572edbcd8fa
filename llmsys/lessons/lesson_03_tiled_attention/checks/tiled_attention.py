"""03.tiled_attention: tiles of queries and of keys, on a machine that counts what crosses."""

import torch

from llmsys.attention import tiled
from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.hardware.memory import HBM
from llmsys.lessons.common import exact, multiples, tokens_first
from llmsys.lessons.lesson_03_tiled_attention.checks.tiles import FUSED, LIBRARY, TILE


def on_the_machine(attention):
    """Tiled attention as an ordinary function of plain tensors: it builds the memories, and returns what is asked for.

    report      "values": (o, lse) · "o": o alone, lse not asked for · "loaded", "stored": bytes by tensor, the same way
    """

    def run(q, k, v, *, report: str = "values", sram: int | None = None, **options):
        programs = k.shape[0] * k.shape[1]
        with HBM(sram=sram, programs=programs, q=q, k=k, v=v) as hbm:
            result = attention(q, k, v, return_lse=report == "values", hbm=hbm, **options)
        if report in ("values", "o"):
            return result
        return dict(getattr(hbm, report))

    return run


@exercise_check(
    "03.tiled_attention",
    reference=tiled.tiled_attention,
    forbids=(*FUSED, *LIBRARY),
    adapt=on_the_machine,
    hints=(
        "Two loops: tiles of queries outside, tiles of keys inside. What is loaded once per query tile, what once per "
        "key tile, and where is the one place at which o and lse are stored?",
        "Inside, the state (m, l, o) of equation (4) takes one more tile. With causal, query i sees the keys up to "
        "i + Tk − Tq: the inner loop ends after the last key that the tile's last query sees, and only a tile that "
        "some query sees in part needs a mask. Where m_new is still −∞, subtract 0 instead.",
        "for i in range(0, Tq, block_q):\n"
        "    Q = load(q's rows i…) as (B, Hkv, G·rows, Dk), times scale;  m, l, o = -inf, 0, 0\n"
        "    stop = min(max(i + rows + Tk − Tq, 0), Tk) if causal else Tk\n"
        "    for j in range(0, stop, block_k):\n"
        "        K, V = load(k[:, :, j : min(j + block_k, stop)]), load(v[the same])\n"
        "        S = Q @ K.mT, −∞ where key > query + Tk − Tq;  absorb (S, V) by equation (4)\n"
        "    store(o rows, O / l);  store(lse rows, m + log l)      (l = 1 where it is 0)",
    ),
    equivalent={
        "0.0 → 1.0": "any finite number does in the place of −∞: e^(−∞ − 1) is 0, too",
        "0 → 1 (4)": "l is 0 or at least 1; and to divide by 1 changes nothing",
        "1.0 → 2.0": "for a query without a key: 0 / 2 is 0, and −∞ + ln 2 is −∞",
    },
)
def tiled_attention(answer: Answer) -> None:
    def draw(Tq: int, Tk: int, *, B=1, G=1, Hkv=1, D=8, Dv=None, scale=1.0):
        return (
            answer.randn(B, G * Hkv, Tq, D, scale=scale),
            answer.randn(B, Hkv, Tk, D),
            answer.randn(B, Hkv, Tk, Dv or D),
        )

    with answer.property("a single key: o is its value", why="A softmax over one score is 1, whatever the score is."):
        q, k, v = draw(4, 1)
        answer.matches(v.expand(-1, -1, 4, -1).clone(), q, k, v, block_q=8, block_k=8, report="o")

    with answer.property(
        "one tile of queries, one of keys", why="A softmax of a tile, times V: the state absorbs once."
    ):
        q, k, v = draw(8, 8)
        answer.matches(exact(q, k, v), q, k, v, block_q=8, block_k=8)

    with answer.property(
        "many tiles of keys", why="o is a sum under m, as ℓ is: it is rescaled with ℓ, and divided at the end."
    ):
        q, k, v = draw(8, 32, scale=3.0)
        k = k[:, :, (k[0, 0] @ q[0, 0, 0]).argsort()]
        answer.matches(exact(q, k, v), q, k, v, block_q=8, block_k=8)

    with answer.property(
        "many tiles of queries, several heads and sequences", why="Each query tile starts from nothing."
    ):
        q, k, v = draw(24, 16, B=2, Hkv=3, Dv=4)
        answer.matches(exact(q, k, v), q, k, v, block_q=8, block_k=8)

    with answer.property("ragged ends on both sides", why="No length is a multiple of a tile for long."):
        for Tq, Tk, block_q, block_k in ((7, 13, 4, 8), (17, 5, 16, 3), (1, 33, 16, 16), (3, 1, 2, 2)):
            q, k, v = draw(Tq, Tk, Hkv=2, scale=2.0)
            answer.matches(exact(q, k, v), q, k, v, block_q=block_q, block_k=block_k)
        q, k, v = draw(70, 67)
        answer.matches(exact(q, k, v), q, k, v)  # tiles of 64

    with answer.property(
        "causal, aligned at the end",
        why="The last query is the last token: query i sees the keys up to i + Tk − Tq.",
        hint="Take Tq = 2, Tk = 5, tiles of 2. Which keys does each query see, and where does the inner loop end?",
    ):
        for Tq, Tk, block in ((16, 16, 8), (5, 9, 4), (7, 7, 5), (1, 9, 4)):
            q, k, v = draw(Tq, Tk, Hkv=2, scale=2.0)
            answer.matches(exact(q, k, v, causal=True), q, k, v, block_q=block, block_k=block, causal=True)
        q, k, v = draw(9, 11)
        answer.matches(exact(q, k, v, causal=True), q, k, v, block_q=8, block_k=3, causal=True)

    with answer.property(
        "a query that sees no key: o = 0, lse = −∞, and no NaN",
        why="More queries than keys: the first ones come too early.",
        hint="Follow a row whose scores are all −∞: its m_new, its P, its l, and what is stored of it.",
    ):
        q, k, v = draw(9, 3, Hkv=2)  # of tiles of four, the first sees nothing, and the second in part
        o, _ = exact(q, k, v, causal=True)
        answer.matches(o, q, k, v, block_q=4, block_k=4, causal=True, report="o")
        answer.matches(exact(q, k, v, causal=True), q, k, v, block_q=4, block_k=4, causal=True)
        answer.matches(exact(q, k, v, causal=True), q, k, v, block_q=16, block_k=16, causal=True)

    with answer.property(
        "grouped queries: query head h reads key head h // G",
        why="G query heads share one key head; they are neighbours.",
        hint="A tile of queries holds rows of all G heads of a group. Which key head do they read?",
    ):
        q, k, v = draw(5, 7, B=2, G=3, Hkv=2, Dv=4)
        answer.matches(exact(q, k, v), q, k, v, block_q=4, block_k=4)

    with answer.property(
        "grouped and causal: each row of the stack is masked as its own query",
        why="A query has a row for each of its G heads, and they see the same keys.",
        hint="Two queries of three heads, stacked: write down which query each of the six rows is. Is your mask's "
        "order the same?",
    ):
        q, k, v = draw(5, 7, B=2, G=3, Hkv=2, Dv=4)
        answer.matches(exact(q, k, v, causal=True), q, k, v, block_q=4, block_k=4, causal=True)
        answer.matches(exact(q, k, v, causal=True, scale=0.7), q, k, v, block_q=4, block_k=4, causal=True, scale=0.7)

    with answer.property(
        "logits of ±10,000 overflow nothing",
        why="The maximum goes before the exponential does.",
        hint="Does any number of your own stand in for −∞? And is an exponent ever above 0?",
    ):
        q, k, v = draw(8, 24, D=16, scale=1e4)
        q, k = multiples(q, 128), k.round()
        answer.matches(exact(q, k, v), q, k, v, block_q=8, block_k=8)
        q, k, v = draw(8, 24, D=16)
        q, k = torch.ones_like(q), multiples(32 * k, 32)
        o, _ = exact(q, k - 4096, v)  # all of them about -16,384
        answer.matches(o, q, k - 4096, v, block_q=8, block_k=8, report="o")
        k[:, :, 17:] += 4096  # what the first query must not see is far above what it sees
        o, _ = exact(q, k, v, causal=True)
        answer.matches(o, q, k, v, block_q=8, block_k=8, causal=True, report="o")

    with answer.property(
        "all of it together: options, sizes, tiles and strides",
        why="A model asks for several at once, and its tensors are views of larger ones.",
        hint="Which line assumes something of one option that holds only without another one? A tile "
        "has block_q or block_k rows, whatever else is asked for.",
    ):
        for (Tq, Tk), (B, G, Hkv), Dv, blocks, options in (  # each pair of options is in one of them
            ((5, 13), (2, 3, 2), 3, (3, 4), {"causal": True, "scale": 0.3}),
            ((11, 4), (3, 2, 1), 9, (4, 3), {"causal": True, "scale": 0.6}),
            ((11, 4), (1, 1, 2), 6, (3, 7), {"causal": True}),
            ((9, 9), (2, 2, 1), 5, (2, 5), {"causal": True}),
            ((9, 9), (1, 3, 2), 6, (5, 2), {"scale": 1.5}),
            ((1, 12), (3, 2, 2), 3, (4, 5), {"causal": True, "scale": 0.3}),
        ):
            q, k, v = draw(Tq, Tk, B=B, G=G, Hkv=Hkv, D=6, Dv=Dv, scale=2.0)
            options |= {"block_q": blocks[0], "block_k": blocks[1]}
            given = {x: options[x] for x in ("causal", "scale") if x in options}
            run = answer.matches(exact(q, k, v, **given), *map(answer.spread, (q, k, v)), **options)
            answer.reads_at_once(run, q.numel() // Tq * blocks[0], 0, "a tile of q")
            answer.reads_at_once(run, k.numel() // Tk * blocks[1], 1, "a tile of k")
            q, k, v = draw(Tq, Tk, B=B, G=G, Hkv=Hkv, D=6, Dv=Dv)  # the same shape again, and other numbers
            answer.matches(exact(q, k, v, **given)[0], *map(tokens_first, (q, k, v)), report="o", **options)

    with answer.property(
        "q is loaded once, k and v once per query tile",
        why="More is wasted; fewer cannot be.",
        hint="Which hbm.load stands in which loop? q's tile outlives the inner one.",
    ):
        q, k, v = draw(20, 16, G=2, Hkv=2)
        loads = {"q": q.nbytes, "k": 3 * k.nbytes, "v": 3 * v.nbytes}
        answer.matches(loads, q, k, v, block_q=8, block_k=8, report="loaded")

    with answer.property(
        "o and lse are stored once",
        why="The state lives on the chip until it is finished.",
        hint="After which loop is a row of o final? And a row that sees no key is stored, too.",
    ):
        q, k, v = draw(12, 16, G=2, Hkv=2)
        answer.matches({"o": q.nbytes, "lse": q.nbytes // 8}, q, k, v, block_q=8, block_k=8, report="stored")
        q, k, v = draw(12, 5, G=2, Hkv=2)  # also for the queries that see no key
        stored = {"o": q.nbytes, "lse": q.nbytes // 8}
        answer.matches(stored, q, k, v, block_q=4, block_k=3, causal=True, report="stored")

    with answer.property(
        "causal: keys that no query of the tile sees are not loaded",
        why="Half of the tiles, for a long sequence.",
        hint="Which is the last key that the last query of the tile sees? The last load ends there.",
    ):
        q, k, v = draw(24, 24)
        loads = {"q": q.nbytes, "k": k.nbytes * 2, "v": v.nbytes * 2}  # 1 + 2 + 3 tiles of 3
        answer.matches(loads, q, k, v, block_q=8, block_k=8, causal=True, report="loaded")
        q, k, v = draw(12, 12)
        loads = {"q": q.nbytes, "k": k.nbytes * 2, "v": v.nbytes * 2}  # 4 + 8 + 12 keys of 12
        answer.matches(loads, q, k, v, block_q=4, block_k=8, causal=True, report="loaded")
        q, k, v = draw(12, 4)  # the first eight queries, two tiles of them, see nothing
        loads = {"q": q.nbytes, "k": k.nbytes, "v": v.nbytes}
        answer.matches(loads, q, k, v, block_q=4, block_k=4, causal=True, report="loaded")
        q, k, v = draw(7, 12, B=2, G=3, Hkv=2)  # with a cache, a batch and groups: the tiles see 8, 11 and 12 keys
        loads = {"q": q.nbytes, "k": k.nbytes * 31 // 12, "v": v.nbytes * 31 // 12}
        answer.matches(loads, q, k, v, block_q=3, block_k=5, causal=True, scale=0.4, report="loaded")

    with answer.property(
        "nothing with Tq × Tk elements is ever made, and the chip is large enough",
        why="A few tiles fit; the scores do not.",
        hint="What do you make, or collect in a list, that has a number for each query and key: S, P, a mask?",
    ):
        q, k, v = draw(9, 320)  # 40 tiles of k: whoever keeps them, or one of scores for each, has not got the room
        run = answer(q, k, v, block_q=8, block_k=8, sram=24 * TILE)
        answer.allocates(run, 6 * TILE, "six tiles")
        answer.keeps(run, 24 * TILE, "24 tiles, and NumPy's are tiles, too")
        answer.equal(run, exact(q, k, v))
