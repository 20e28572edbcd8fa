"""05.backward_tiled: the gradients tile by tile, from o and the log-sum-exp."""

import torch
from torch import Tensor

from llmsys.attention import backward
from llmsys.attention.contract import visible_keys
from llmsys.course.checking.answer import Answer, Run
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.common import exact, multiples, tokens_first
from llmsys.lessons.lesson_05_backward_pass.gradients import FORBIDDEN, draw, exact_gradients, one_gradient

TOLERANCE = 1e-4  # for sums of many products; and lse is a float32, whatever the rest is
TILES = "Which line decides how many queries a tile has, and which how many keys? Each has a length of its own."
PRODUCTS = (
    "Count the @ in your inner loop: S, dV, dP, dQ, dK. Is any of them made twice, or of more than a tile; or summed "
    "in another way than by a product?"
)


@exercise_check(
    "05.backward_tiled",
    reference=backward.backward_tiled,
    forbids=FORBIDDEN,
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
    def right(only: str, q, k, v, do, *, causal=False, scale=None, tolerance=None, layout=lambda x: x, **blocks):
        expected = exact_gradients(q, k, v, do, causal=causal, scale=scale)
        o, lse = exact(q, k, v, causal=causal, scale=scale)
        return answer.matches(
            expected[only] if only else tuple(expected.values()), *map(layout, (q, k, v, o, lse, do)),
            causal=causal, scale=scale, only=only, rtol=tolerance, atol=tolerance, **blocks,
        )  # fmt: skip

    with answer.property("one tile: dv, from a P that was not given", why="P = exp(S − lse), by the row's lse."):
        right("dv", *draw(answer, 6, 8, Dv=4), scale=1.0, block_q=8, block_k=8)

    with answer.property("one tile: dq and dk", why="delta is rowsum(dO ∘ o): P itself is not needed for it."):
        for only in ("dq", "dk"):
            right(only, *draw(answer, 6, 8, Dv=4), scale=1.0, block_q=8, block_k=8, tolerance=TOLERANCE)

    with answer.property(
        "the scale, by default 1/√Dk", why="It is in S, and once in dq and in dk.",
        hint="Three places want the scale: S, dq and dk. Is it in each of them, once, and the one that was passed?",
    ):  # fmt: skip
        right("", *draw(answer, 6, 8, Dv=4), block_q=8, block_k=8)
        right("", *draw(answer, 6, 8), scale=0.7, block_q=8, block_k=8)

    with answer.property("several tiles of queries", why="dk and dv of a key are sums over all queries."):
        for only in ("dv", "dk", "dq"):
            right(only, *draw(answer, 24, 8), block_q=8, block_k=8)

    with answer.property(
        "several tiles of keys", why="P's row sums to one over all of them, and dq of a query is a sum over all keys."
    ):
        for only in ("dv", "dk", "dq"):
            right(only, *draw(answer, 8, 24), block_q=8, block_k=8)

    with answer.property("ragged ends on both sides", why="No length is a multiple of a tile for long.", hint=TILES):
        for Tq, Tk, block_q, block_k in ((7, 13, 4, 8), (17, 5, 16, 3), (1, 9, 4, 4), (9, 1, 2, 2)):
            right("", *draw(answer, Tq, Tk), block_q=block_q, block_k=block_k)
        right("", *draw(answer, 67, 70))  # tiles of 64

    with answer.property(
        "all three, for many heads and sequences", why="Heads know nothing of each other.",
        hint="Products, transpositions and sums are of the last two dimensions: .mT, not .T; dim=-1, not dim=1.",
    ):  # fmt: skip
        right("", *draw(answer, 9, 6, B=2, Hkv=3, Dv=4), block_q=4, block_k=4)

    with answer.property(
        "causal, aligned at the end", why="As in the forward pass: query i sees the keys up to i + Tk − Tq.",
        hint="Take Tq = 2, Tk = 5. Which keys does query 0 see, which query 1? Which is the first query of key 4?",
    ):  # fmt: skip
        for Tq, Tk, block_q, block_k in (  # in the second, each loop that begins at a wrong query has its own result
            (8, 8, 8, 8), (8, 10, 1, 4), (16, 16, 4, 4), (5, 13, 4, 4), (1, 9, 4, 4), (12, 20, 8, 3), (12, 14, 3, 8),
            (3, 4, 1, 2),
        ):  # fmt: skip
            right("", *draw(answer, Tq, Tk), causal=True, block_q=block_q, block_k=block_k)

    with answer.property(
        "what is hidden may be far above what is seen", why="exp overflows there, and ∞ · 0 is no number: select, do "
        "not multiply.", hint="What is exp(S − lse) of a key that is hidden, if its score is a hundred above the lse?",
    ):  # fmt: skip
        q, k, v, do = draw(answer, 8, 8)
        # Each key's scores are far above those of the keys before, and the last one's are of the usual size: S − lse
        # overflows where it is hidden, and a quotient of exponentials is 0 / 0 where it is not.
        k = k + 40 * (torch.arange(8.0) - 7)[:, None]
        right("dv", q.abs(), k, v, do, causal=True, block_q=8, block_k=8, tolerance=1e-3)

    with answer.property(
        "rows without a key: no gradient, and no NaN", why="Their lse is −∞, and −∞ − (−∞) is no number.",
        hint="With more queries than keys, query 0 sees nothing. Follow it: its lse, its S, its P, its dS.",
    ):  # fmt: skip
        right("", *draw(answer, 12, 5, Hkv=2), causal=True, block_q=4, block_k=4)
        right("", *draw(answer, 12, 5), causal=True, block_q=16, block_k=16)

    with answer.property(
        "grouped queries: dk and dv are sums over the group", why="G query heads read the same key head, h // G.",
        hint="Of a tile's G · rows rows, which query is row r? And to which rows of dq does its share go?",
    ):  # fmt: skip
        for only in ("dv", "dk", "dq"):
            right(only, *draw(answer, 9, 11, B=2, G=3, Hkv=2, Dv=4), block_q=4, block_k=4)
        right("", *draw(answer, 9, 11, G=2, Hkv=2), causal=True, block_q=4, block_k=4)
        right("", *draw(answer, 9, 5, G=2), causal=True, scale=0.4, block_q=4, block_k=4)

    with answer.property(
        "logits of ±1,000, and of −16,000", why="exp(S) alone would overflow; S − lse is never above 0.",
        hint="Every score may be far from 0, and so is the lse. Does any number of your own stand in for −∞?",
    ):  # fmt: skip
        right("", *draw(answer, 8, 12, scale=300.0), block_q=4, block_k=4, tolerance=2e-2)
        _, k, v, do = draw(answer, 9, 11, Dk=16)
        q, k = torch.ones(1, 1, 9, 16), multiples(8 * k, 8) - 4096
        right("dv", q, k, v, do, causal=True, block_q=4, block_k=3, tolerance=5e-3)

    def products(*tensors, causal=False, scale=None, block_q: int, block_k: int, exactly: bool = True) -> None:
        """The answer makes five products for each pair of tiles that see each other; or, if not exactly, none that is
        more than twice as large as those of a pair of tiles."""
        q, k, v, do = tensors
        o, lse = exact(q, k, v, causal=causal, scale=scale)
        options = {"causal": causal, "scale": scale, "block_q": block_q, "block_k": block_k, "only": "products"}
        run = answer(q, k, v, o, lse, do, **options)
        heads, (Tq, Dk), (Tk, Dv) = q.shape[0] * q.shape[1], q.shape[2:], v.shape[2:]
        seen = visible_keys(Tq, Tk) if causal else torch.ones(Tq, Tk, dtype=torch.bool)
        pairs = [tile for rows in seen.split(block_q) for tile in rows.split(block_k, dim=1) if tile.any()]
        each = 2 * (3 * Dk + 2 * Dv) * heads  # operations of five products, for a query and a key
        least, most = each * int(seen.sum()), each * sum(tile.numel() for tile in pairs)
        delta = 2 * Dv * heads * sum(len(tile) for tile in pairs)  # it may be taken by a product, even in the loop
        tile = 2 * heads * block_q * block_k * max(Dk, Dv)

        def flops(r: Run) -> int:
            return sum(r.value["summed over"].values()) if isinstance(r.value, dict) else 0

        def got(r: Run) -> str:
            if not flops(r):
                return "none that torch made: what is multiplied and summed in another way is slow"
            return f"{flops(r):,} FLOP in {r.value['count']} products, {r.value['largest']:,} in the largest"

        if exactly:
            answer.that(
                run,
                lambda r: least <= flops(r) <= most + delta and r.value["count"] <= 6 * len(pairs) * heads,
                f"{most:,} FLOP in matrix products, five products for each of {len(pairs)} pairs of tiles",
                got,
            )
        else:
            answer.that(
                run,
                lambda r: 0 < flops(r) and r.value["largest"] <= 2 * tile,
                f"no product larger than those of {block_q} queries of each head with {block_k} keys: {tile:,} FLOP",
                got,
            )

    with answer.property(
        "all of it together: options, sizes, tiles and strides",
        why="A model asks for several at once, and its tensors are views of larger ones.",
        hint="Which line assumes something of one option that holds only without another one? Or of a tensor: its "
        "size, its dtype, how it lies in memory? A tile has block_q queries and block_k keys, always.",
    ):
        for (Tq, Tk), (B, G, Hkv), (Dk, Dv), (block_q, block_k), options, dtype in (  # each pair is in one of them
            ((7, 15), (2, 3, 2), (6, 5), (3, 7), {"causal": True, "scale": 0.3}, torch.float32),
            ((15, 7), (3, 2, 1), (5, 9), (7, 3), {"causal": True, "scale": 0.6}, torch.float64),
            ((7, 3), (1, 1, 3), (6, 7), (5, 2), {"causal": True}, torch.float32),
            ((7, 7), (2, 1, 2), (3, 6), (3, 4), {"scale": 1.5}, torch.float32),
            ((8, 5), (1, 3, 1), (6, 6), (7, 2), {"scale": 0.3}, torch.float64),
            ((3, 8), (2, 2, 2), (7, 3), (2, 5), {"causal": True, "scale": 0.7}, torch.float32),
            ((5, 6), (1, 1, 1), (6, 5), (4, 5), {}, torch.float32),
        ):
            options = {**options, "block_q": block_q, "block_k": block_k}
            for layout in (answer.spread, by_tokens):  # the same shape twice, with other numbers
                tensors = [x.to(dtype) for x in draw(answer, Tq, Tk, B=B, G=G, Hkv=Hkv, Dk=Dk, Dv=Dv)]
                right("", *tensors, **options, layout=layout, tolerance=TOLERANCE)
            if B > 1 and G > 1:  # in these, everything else is set as well
                products(*map(answer.spread, tensors), **options, exactly=False)

    with answer.property("five products for a pair of tiles", why="S again, then dV, dP, dQ and dK.", hint=PRODUCTS):
        products(*draw(answer, 16, 12, Dv=5), block_q=8, block_k=4)
        products(*draw(answer, 8, 10, B=2, G=3, Dv=5), scale=0.3, block_q=4, block_k=5)

    with answer.property(
        "causal: five for a pair that sees each other, none for another", why="Half of the work of a long sequence.",
        hint="Which is the first query that sees key j? In tiles of block_q queries, the loop begins with that one's.",
    ):  # fmt: skip
        products(*draw(answer, 32, 32, Dv=5), causal=True, block_q=8, block_k=8)  # 1 + 2 + 3 + 4 pairs of 16
        products(*draw(answer, 6, 12, G=2, Dv=5), causal=True, scale=0.3, block_q=3, block_k=4)
        products(*draw(answer, 12, 6, B=2, Dv=5), causal=True, block_q=4, block_k=3)  # none for those without a key

    with answer.property(
        "nothing with Tq × Tk elements is ever made, or kept tile by tile",
        why="That is what recomputing is for: memory that grows with T.",
        hint="What do you make, or collect in a list, that has a number for each query and key: P, dS, a mask?",
    ):
        for causal in (False, True):  # a mask of all pairs would have T² elements, too
            q, k, v, do = draw(answer, 256, 256, Dk=4)
            run = right("", q, k, v, do, causal=causal, block_q=32, block_k=32, tolerance=TOLERANCE)
            answer.allocates(run, 4 * q.nbytes, "four gradients")
            answer.keeps(run, 36 * q.nbytes, "36 gradients, room for a dozen tiles in float64; P has 64")


def by_tokens(x: Tensor) -> Tensor:
    """`tokens_first`, for lse (B, H, T) as well."""
    return tokens_first(x) if x.dim() == 4 else tokens_first(x[..., None])[..., 0]
