"""What was sent where: hits are the leading blocks that were, as many as there is room for."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsys.cache import BlockPool
from llmsys.serving.routing import Remembered

NAMES = ["a", "b"]


def test_hits_are_whole_leading_blocks_short_of_the_last_token():
    sent = Remembered(4, {"a": 100, "b": 100})
    tokens = list(range(10))
    assert sent.hits(NAMES, tokens) == [0, 0]
    sent.note("a", tokens)
    assert sent.hits(NAMES, tokens) == [8, 0] and sent.hits(NAMES, tokens[:8]) == [4, 0], "one is left to compute"
    assert sent.hits(NAMES, [*tokens[:4], 77, *tokens[5:]]) == [4, 0]
    assert sent.hits(NAMES, [77, *tokens[1:]]) == [0, 0], "a block is what is in it, and all before it"
    assert sent.hits(["b", "a"], tokens) == [0, 8]
    assert sent.hits(NAMES, tokens, salt="tenant") == [0, 0]
    sent.note("b", tokens[:4], salt="tenant")
    assert sent.hits(NAMES, tokens, salt="tenant") == [0, 4]
    sent.forget("a")
    assert sent.hits(NAMES, tokens) == [0, 0] and sent.hits(NAMES, tokens, salt="tenant") == [0, 4]


def test_what_was_sent_longest_ago_is_taken_for_evicted_its_end_first():
    sent = Remembered(2, {"a": 9})
    sent.note("a", [1, 2, 3, 4, 5, 6])
    sent.note("a", [7, 8])
    assert sent.hits(["a"], [1, 2, 3, 4, 5, 6, 0]) == [6]
    sent.note("a", [9, 9])
    assert sent.hits(["a"], [1, 2, 3, 4, 5, 6, 0]) == [4], "five blocks do not fit into nine slots"
    sent.note("a", [1, 2])
    sent.note("a", [5, 5, 5, 5])
    assert sent.hits(["a"], [1, 2, 3, 4]) == [2], "sent again, it is new again"


@given(st.integers(0, 10**6), st.sampled_from([1, 3, 4]))
def test_with_room_enough_it_is_what_a_pool_would_hit(seed, size):
    draw, sent = random.Random(seed), Remembered(size, {"a": 4000})
    pool, tokens = BlockPool(2000, size), [0] * 20
    for _ in range(12):
        kept = draw.randrange(len(tokens))
        tokens = tokens[:kept] + [draw.randrange(3) for _ in range(draw.randrange(1, 20))]
        hit = pool.match(tokens)
        assert sent.hits(["a"], tokens) == [hit.tokens]
        table = pool.allocate(len(tokens), hit)
        pool.register(table, tokens, len(tokens))
        pool.free(table)
        sent.note("a", tokens)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="block_size must be"):
        Remembered(0, {"a": 4})
    with pytest.raises(LookupError):
        Remembered(4, {"a": 4}).note("b", [1, 2])
