"""03.attend_one_query: one query over tiles of keys, with o right for the keys seen so far."""

import torch

from llmsys.attention import tiled
from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.common import exact, multiples
from llmsys.lessons.lesson_03_tiled_attention.checks.tiles import FUSED, LIBRARY, TILE


def one_query(q, k, v):
    """The exact attention of one query (Dk,) over k (T, Dk) and v (T, Dv)."""
    return exact(q[None, None, None], k[None, None], v[None, None])[0][0, 0, 0]


@exercise_check(
    "03.attend_one_query",
    reference=tiled.attend_one_query,
    forbids=(*FUSED, *LIBRARY),
    hints=(
        "Carry three things from tile to tile: m, l, and an o that is right for the keys seen so far. What was "
        "o divided by before this tile, and what should it be divided by now?",
        "Undo the old division, change the maximum, divide anew: o is multiplied by l_old · e^(m_old − m_new) / l_new. "
        "The tile adds p @ v / l_new, with p = e^(s − m_new).",
        "m, l, o = -inf, 0, zeros(Dv)\n"
        "for each tile: s = k_tile @ q / sqrt(Dk);  m_new = maximum(m, s.max());  p = exp(s - m_new)\n"
        "               l_new = l * exp(m - m_new) + p.sum()\n"
        "               o = o * (l * exp(m - m_new) / l_new) + (p / l_new) @ v_tile\n"
        "               m, l = m_new, l_new",
    ),
    equivalent={
        "0.0 → 1.0": "under m = −∞ any l does, too",
        "torch.zeros → torch.ones": "under m = −∞ any o does: the first tile multiplies it by e^(−∞) = 0",
    },
)
def attend_one_query(answer: Answer) -> None:
    def draw(T: int, scale: float = 1.0, Dk: int = 8, Dv: int = 4):
        return answer.randn(Dk, scale=scale), answer.randn(T, Dk), answer.randn(T, Dv)

    with answer.property("a single key: o is its value", why="A softmax over one score is 1, whatever the score is."):
        q, k, v = draw(1)
        answer.matches(v[0], q, k, v, tile=1)

    with answer.property("keys that fit in one tile", why="One step from nothing: softmax(k q / √Dk) times v."):
        q, k, v = draw(8)
        answer.matches(one_query(q, k, v), q, k, v, tile=8)

    with answer.property(
        "scores that fall from tile to tile", why="The maximum stays; o has to make room for the new weights only."
    ):
        q, k, v = draw(24, 3.0)
        k = k[(k @ q).argsort(descending=True)]
        answer.matches(one_query(q, k, v), q, k, v, tile=8)

    with answer.property(
        "scores that rise in every tile", why="What o holds was weighted under a smaller maximum: it shrinks with ℓ."
    ):
        q, k, v = draw(24, 3.0)
        k = k[(k @ q).argsort()]
        answer.matches(one_query(q, k, v), q, k, v, tile=8)
        answer.matches(one_query(q, k, v), q, k, v, tile=1)

    with answer.property("a last tile that is not full", why="T is as long as the conversation is."):
        for T, tile in ((7, 4), (17, 16), (1, 8), (13, 5)):
            q, k, v = draw(T, 2.0, Dv=8)
            answer.matches(one_query(q, k, v), q, k, v, tile=tile)
        q, k, v = draw(37, 2.0, Dk=6, Dv=11)
        answer.matches(one_query(q, k, v), q, k, v)
        q, k, v = draw(37, 2.0, Dk=6, Dv=11)  # the same shape again, other numbers, and others between them
        answer.matches(one_query(q, k, v), *map(answer.spread, (q, k, v)), tile=7)

    with answer.property(
        "scores far below zero, and far above", why="The running maximum begins at −∞; no exponent is ever positive."
    ):
        q, k, v = draw(20, Dk=16)
        q, k = multiples(q.abs(), 0.25), multiples(k.abs() * 300, 64)
        k = k[(k @ q).argsort(descending=True)]
        answer.matches(one_query(-q, k, v), -q, k, v, tile=8)
        answer.matches(one_query(q, k, v), q, k, v, tile=8)  # a tile's own maximum is far below the one so far
        answer.matches(one_query(q, k, v), q, k, v, tile=4)
        q, k, v = draw(20, Dk=16)
        q, k = torch.ones(16), multiples(32 * k, 32) - 4096  # about -16,384 each: no finite number is a safe start
        answer.matches(one_query(q, k, v), q, k, v, tile=8)
        k = k - 2**22  # and -16 million each
        answer.matches(one_query(q, k, v), q, k, v, tile=3)
        q, k, v = torch.zeros(16), answer.randn(300, 16), answer.randn(300, 4)  # equal scores, many of them
        answer.matches(v.mean(dim=0), q, k, v, tile=7)

    with answer.property(
        "k and v are read once, and nothing as long as T is made",
        why="The last pass disappears here: that is the point.",
    ):
        q, k, v = draw(2048)
        run = answer(q, k, v, tile=8)
        for argument, x, name in ((1, k, "k"), (2, v, "v")):
            answer.reads_at_once(run, 8 * x.shape[1], argument, f"a tile of {name}")
            answer.reads(run, at_most=1, of=argument, at_least=1, otherwise="every key and every value counts")
        answer.keeps(run, 12 * TILE, "12 tiles of k")
        answer.equal(run, one_query(q, k, v))
