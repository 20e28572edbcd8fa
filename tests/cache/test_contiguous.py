"""The contiguous cache in steps of many sequences: what a stage is asked, what is read and written, what is refused."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention import naive_attention
from llmsys.attention.rotary import rotate, rotation
from llmsys.cache import (
    Batch,
    CacheSpec,
    Chunk,
    ContiguousCache,
    LayerCache,
    Layout,
    NoCache,
    as_backend,
    batch_of,
    padded_batch_of,
)
from tests.support.poison import poison_new_memory
from tests.support.waiting import nothing_waits

CAPACITY = 19


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    poison_new_memory(monkeypatch)


def written(cache: ContiguousCache) -> list[list[bool]]:
    """Of each row, which of its slots hold keys and values; all layers and heads must agree."""
    found = [~x.rows.isnan() for x in (*cache._keys.values(), *cache._values.values())]
    for x in found:
        assert torch.equal(x.all(3), x.any(3)) and torch.equal(x.all(3).all(1), x.any(3).any(1))
        assert torch.equal(x.all(3)[:, 0], found[0].all(3)[:, 0])
    return found[0].all(3)[:, 0].tolist()


@st.composite
def runs(draw):
    """Sizes (Hkv, group, Dk, Dv or None, R), and a run: of each sequence its row and length; of each step whether it is
    padded, and which sequences in which order compute how many tokens."""
    R = 2 * draw(st.integers(0, 3))
    inside = draw(st.booleans())
    Dk = R + draw(st.sampled_from([1, 2, 5]))
    sizes = draw(st.integers(1, 3)), draw(st.integers(1, 3)), Dk, None if inside else draw(st.integers(1, 6)), R
    lengths = draw(st.lists(st.integers(1, CAPACITY), min_size=1, max_size=4))
    rows = draw(st.permutations(range(5)))[: len(lengths)]
    left, steps = dict(enumerate(lengths)), []
    while left:
        some = draw(st.permutations(sorted(left)))[: draw(st.integers(1, len(left)))]
        step = [(i, min(left[i], draw(st.sampled_from([1, 1, 2, 3, 7, 19])))) for i in some]
        for i, T in step:
            left[i] -= T
        left = {i: n for i, n in left.items() if n}
        steps.append((draw(st.booleans()), step))
    return sizes, lengths, rows, steps, draw(st.integers(0, 2**31))


@given(case=runs(), stage=st.sampled_from(["naive", "online", "tiled", "sdpa"]))
@settings(max_examples=60)
def test_whatever_the_order_every_token_sees_what_came_before_it(case, stage):
    (Hkv, group, Dk, Dv, R), lengths, rows, steps, seed = case
    random = torch.Generator().manual_seed(seed)
    sequences = [  # q, k, v of two layers, and by how much each token turns
        [[torch.randn(1, H, T, D, generator=random, dtype=torch.float64) if D else None
          for H, D in ((Hkv * group, Dk), (Hkv, Dk), (Hkv, Dv))] for _ in range(2)] for T in lengths
    ]  # fmt: skip

    def turn_of(positions):
        return rotation(positions, R, dtype=torch.float64) if R else None

    expected = []
    for layers, T in zip(sequences, lengths, strict=True):
        turn = turn_of(torch.arange(T))
        expected.append([
            naive_attention(rotate(q, turn), rotate(k, turn), k[..., : Dk - R] if v is None else v, causal=True)
            for q, k, v in layers
        ])  # fmt: skip
    cache = ContiguousCache(as_backend(stage).stage, capacity=CAPACITY, sequences=5)
    computed = [0] * len(lengths)
    for padded, step in steps:
        chunks = [Chunk(range(T), computed[i], [rows[i]]) for i, T in step]
        batch = (padded_batch_of if padded else batch_of)(chunks, block_size=cache.block_size)
        T = batch.tokens.shape[1]

        def side_by_side(x, i, n, padded=padded, T=T):
            x = x[:, :, computed[i] : computed[i] + n]
            return torch.nn.functional.pad(x, (0, 0, T - n, 0)) if padded else x

        for layer in range(2):
            q, k, v = (
                None if of_one[0] is None else torch.cat(of_one, dim=0 if padded else 2)
                for of_one in zip(*[
                    [x if x is None else side_by_side(x, i, n) for x in sequences[i][layer]] for i, n in step
                ], strict=True)
            )  # fmt: skip
            o = cache.attend(layer, q, k, v, batch, turn=turn_of(batch.positions))
            assert o.shape == (*q.shape[:3], Dv or Dk - R)
            start = 0
            for row, (i, n) in enumerate(step):
                got = o[row, :, T - n :] if padded else o[0, :, start : start + n]
                start += n
                should = expected[i][layer][0, :, computed[i] : computed[i] + n]
                torch.testing.assert_close(got, should, atol=1e-5, rtol=1e-5)
        for i, n in step:
            computed[i] += n
    holds = dict(zip(rows, lengths, strict=True))
    assert written(cache) == [[slot < holds.get(row, 0) for slot in range(CAPACITY)] for row in range(5)]


def heads(N, D=4, H=2):
    return torch.randn(1, H, N, D)


def test_equal_sequences_in_neighbouring_rows_are_one_call_of_the_stage():
    calls = []

    def stage(q, k, v, *, causal):
        calls.append((q.shape[0], q.shape[2], k.shape[2]))
        return naive_attention(q, k, v, causal=causal)

    cache = ContiguousCache(stage, capacity=9, sequences=6)

    def run(*chunks, make=batch_of):
        calls.clear()
        batch = make([Chunk([0] * T, computed, [row]) for row, computed, T in chunks], block_size=9)
        q = torch.randn(batch.tokens.shape[0], 2, batch.tokens.shape[1], 4)
        cache.attend(0, q, q, q, batch)
        return calls

    assert run((0, 0, 3), (1, 0, 3), (2, 0, 3)) == [(3, 3, 3)]
    assert run((0, 3, 1), (1, 3, 1), (3, 0, 1), (4, 0, 1)) == [(2, 1, 4), (2, 1, 1)]
    assert run((2, 3, 1), (1, 4, 1), (0, 4, 1)) == [(1, 1, 4), (1, 1, 5), (1, 1, 5)], "rows count upwards"
    assert run((3, 1, 1), (5, 0, 1)) == [(1, 1, 2), (1, 1, 1)], "a row is between"
    assert run((4, 1, 2), (5, 1, 2), (0, 5, 1)) == [(2, 2, 3), (1, 1, 6)]
    assert run((0, 6, 2), (1, 5, 1), (2, 4, 1), make=padded_batch_of) == [(1, 2, 8), (1, 2, 6), (1, 2, 5)]
    assert run((1, 6, 2), (2, 6, 2), make=padded_batch_of) == [(2, 2, 8)]


def test_a_row_can_be_given_to_another_sequence_and_a_sequence_be_rolled_back():
    k = heads(8)
    cache = ContiguousCache(naive_attention, capacity=8, sequences=2)

    def run(part, computed, row):
        batch = batch_of([Chunk([0] * part.shape[2], computed, [row])], block_size=8)
        return cache.attend(0, part, part, part, batch)

    run(heads(7), 0, 1)
    run(k[:, :, :5], 0, 1)  # another sequence
    run(heads(2), 5, 1)  #    two guesses, which turn out wrong
    got = run(k[:, :, 5:], 5, 1)
    torch.testing.assert_close(got, naive_attention(k, k, k, causal=True)[:, :, 5:])


def test_room_for_more_computes_nothing_and_keeps_nothing():
    q = heads(7)
    cache = ContiguousCache(capacity=4, sequences=2)
    batch = batch_of([Chunk([0] * 3, 0, [1])], block_size=4, layout=Layout(7, 3, 2, 4))
    o = cache.attend(0, q, q, q, batch)
    torch.testing.assert_close(o[:, :, :3], naive_attention(*[q[:, :, :3]] * 3, causal=True))
    assert not o[:, :, 3:].any() and written(cache) == [[False] * 4, [True] * 3 + [False]]


def test_a_prompt_begun_by_itself_goes_on_in_batches_and_not_the_other_way_round():
    k = torch.randn(2, 2, 5, 4)
    cache = ContiguousCache(naive_attention, capacity=8)
    cache.attend(0, *[k[:, :, :4]] * 3, cache.begin(torch.zeros(2, 4)))
    batch = batch_of([Chunk([0], 4, [row]) for row in (1, 0)], block_size=8)
    now = k[[1, 0], :, 4].transpose(0, 1)[None]  # (1, H, 2, D)
    got = cache.attend(0, now, now, now, batch)
    expected = naive_attention(k, k, k, causal=True)[:, :, -1]
    torch.testing.assert_close(got[0].transpose(0, 1), expected[[1, 0]])
    with pytest.raises(ValueError, match="has been given batches.*cannot go on by itself"):
        cache.begin(torch.zeros(2, 1))


def test_the_slots_of_a_step_are_read_anew_in_each_step_though_it_be_the_same_batch():
    """A CUDA graph captures a step by a batch that was run before, and its buffer changes between replays."""
    cache = ContiguousCache(capacity=4, sequences=3)
    one, two = (batch_of([Chunk([1], 0, [row])], block_size=4) for row in (0, 2))
    for layer in range(2):
        cache.attend(layer, *[heads(1)] * 3, one)
    one.buffer.copy_(two.buffer)
    for layer in range(2):
        cache.attend(layer, *[heads(1)] * 3, one)
    assert written(cache) == [[True] + [False] * 3, [False] * 4, [True] + [False] * 3]


@pytest.mark.parametrize("with_cache", [True, False])
def test_attending_waits_for_nothing(with_cache):
    backend = ContiguousCache(capacity=9, sequences=3) if with_cache else NoCache()
    chunks = [Chunk([0] * T, 0, [row]) for row, T in ((2, 3), (0, 1), (1, 1))]
    for make in (batch_of, padded_batch_of):
        batch = make(chunks, block_size=backend.block_size)
        q = torch.randn(batch.tokens.shape[0], 2, batch.tokens.shape[1], 4)
        with nothing_waits():
            backend.attend(0, q, q, q, batch, turn=rotation(batch.positions, 4, divisors=(1.0, 2.0)))


def test_without_a_cache_each_sequence_is_by_itself():
    lengths = [3, 1, 1, 5]
    parts = [heads(T) for T in lengths]
    q = torch.cat(parts, dim=2)
    batch = batch_of([Chunk([0] * T) for T in lengths], block_size=None)
    expected = [naive_attention(x, x, x, causal=True) for x in parts]
    torch.testing.assert_close(NoCache().attend(0, q, q, q, batch), torch.cat(expected, dim=2))
    rows = torch.cat([torch.nn.functional.pad(x, (0, 0, 5 - x.shape[2], 0), value=math.nan) for x in parts])
    batch = padded_batch_of([Chunk([0] * T) for T in lengths], block_size=None)
    got = NoCache(naive_attention).attend(0, rows, rows, rows, batch)
    for row, x in zip(got, expected, strict=True):
        torch.testing.assert_close(row[:, 5 - x.shape[2] :], x[0])


CHUNK = Chunk([0], 0, [0])


@pytest.mark.parametrize(
    "chunks, options, message",
    [
        ([Chunk([0], 0, [3])], {}, "chunks[0].blocks must be one of the cache's rows, from 0 to 2, got 3"),
        ([CHUNK, Chunk([0] * 2, 8, [1, 2])], {}, "chunks[1]: 10 tokens do not fit into a row of 9"),
        ([CHUNK, Chunk([0], 3, [0])], {}, "chunks must be of different rows, one a sequence, got rows [0, 0]"),
        ([CHUNK], {"block_size": 8}, "batch must be made with the cache's block_size, 9, got 8"),
        ([CHUNK], {"block_size": None}, "batch must be made with the cache's block_size, 9, got None"),
        ([Chunk([0], 0, [0], tree=torch.ones(1, 1).bool().numpy())], {}, "knows no tree"),
    ],
)
def test_what_this_cache_cannot_do_is_refused_before_anything_is_written(chunks, options, message):
    cache = ContiguousCache(capacity=9, sequences=3)
    cache.attend(0, *[heads(1)] * 3, batch_of([CHUNK], block_size=9))
    before = written(cache)
    q = heads(sum(len(chunk.tokens) for chunk in chunks))
    with pytest.raises(ValueError, match=re.escape(message)):
        cache.attend(0, q, q, q, batch_of(chunks, **{"block_size": 9} | options))
    assert written(cache) == before


def test_a_cache_is_told_how_many_sequences_where_the_caller_makes_batches():
    with pytest.raises(ValueError, match="sequences must be given"):
        ContiguousCache(capacity=9).attend(0, *[heads(1)] * 3, batch_of([CHUNK], block_size=9))
    with pytest.raises(ValueError, match="batch must be what begin returned"):
        ContiguousCache(capacity=9).attend(0, *[heads(1)] * 3, Batch(torch.arange(1)))
    with pytest.raises(ValueError, match="sequences must be at least 1"):
        ContiguousCache(capacity=9, sequences=0)
    cache = as_backend("contiguous", capacity=9, sequences=2)
    assert cache.sequences == 2 and as_backend("naive", capacity=9, sequences=3).sequences == 3
    with pytest.raises(ValueError, match="the cache's batch size, 2, got 1"):
        cache.begin(torch.zeros(1, 3))


@pytest.mark.parametrize(
    "chunk, message",
    [
        (Chunk([0], 2), r"chunks\[0\].computed must be 0 without a cache, got 2"),
        (Chunk([0], tree=torch.ones(1, 1).bool().numpy()), "a stage knows no tree"),
    ],
)
def test_what_needs_a_cache_is_refused_without_one(chunk, message):
    with pytest.raises(ValueError, match=message):
        NoCache().attend(0, *[heads(1)] * 3, batch_of([chunk], block_size=None))


def test_bytes_are_of_the_rows():
    spec = CacheSpec((LayerCache(0, 2, 4, 4, torch.float32), LayerCache(1, 2, 4, 4, torch.float32)))
    cache = ContiguousCache(capacity=9, sequences=5, spec=spec)
    assert cache.bytes == 0, "none is taken before the first step"
    for layer in range(2):
        cache.attend(layer, *[heads(1)] * 3, batch_of([CHUNK], block_size=9))
    assert cache.bytes == 5 * 9 * spec.bytes_per_token
