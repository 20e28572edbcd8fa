"""Keys and values between differently cut caches, against loops over tokens and heads."""

import random

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from llmsys.parallel.ranks import run
from llmsys.serving.disaggregate.relayout import head_moves, read_rows, relay, slots_of, write_rows

SPLITS = [(heads, parts) for heads in (1, 2, 3, 4, 6, 8) for parts in (1, 2, 3, 4, 6, 8, 16)
          if heads % parts == 0 or parts % heads == 0]  # fmt: skip


def heads_of(heads: int, parts: int, part: int) -> list[int]:
    """Which heads a rank keeps: each rank as many, or, of more ranks than heads, one."""
    if parts <= heads:
        return [head for head in range(heads) if head * parts // heads == part]
    return [part * heads // parts]


def cut(whole: torch.Tensor, heads: int, parts: int, block_size: int, garbage: float) -> list[torch.Tensor]:
    """A sequence (T, H, D) in pages, token by token, with garbage behind the last."""
    T, _, D = whole.shape
    found = []
    for part in range(parts):
        own = heads_of(heads, parts, part)
        pages = torch.full((-(-T // block_size), block_size, len(own), D), garbage, dtype=whole.dtype)
        for t in range(T):
            pages[t // block_size, t % block_size] = whole[t, own]
        found.append(pages)
    return found


@given(
    st.sampled_from(SPLITS), st.sampled_from(SPLITS), st.integers(1, 23), st.integers(1, 9), st.integers(1, 9),
    st.integers(1, 5),
)  # fmt: skip
def test_any_block_size_and_split_is_laid_as_any_other(one, other, T, size, new_size, D):
    heads, parts = one
    _, new_parts = other
    if heads % new_parts and new_parts % heads:
        with pytest.raises(ValueError, match=f"receivers must .* the {heads} heads or be a multiple"):
            head_moves(heads, parts, new_parts)
        return
    whole = torch.arange(T * heads * D, dtype=torch.float64).view(T, heads, D)
    laid = relay(cut(whole, heads, parts, size, -7.0), T, heads=heads, block_size=new_size, parts=new_parts)
    expected = cut(whole, heads, new_parts, new_size, 0.0)
    assert len(laid) == new_parts and all(torch.equal(a, b) for a, b in zip(laid, expected, strict=True))


@pytest.mark.parametrize(("heads", "senders"), SPLITS)
def test_each_receiver_gets_each_of_its_heads_once_and_copies_are_shared_among_senders(heads, senders):
    for receivers in (parts for known, parts in SPLITS if known == heads):
        moves = head_moves(heads, senders, receivers)
        for receiver in range(receivers):
            got = []
            for move in (each for each in moves if each.receiver == receiver):
                theirs = heads_of(heads, senders, move.sender)[move.there : move.there + move.count]
                ours = heads_of(heads, receivers, receiver)[move.here : move.here + move.count]
                assert theirs == ours
                got += ours
            assert got == heads_of(heads, receivers, receiver)
        if senders <= heads or receivers % senders == 0:
            assert {move.sender for move in moves} == set(range(senders)), "nobody is idle"


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31), st.booleans())
def test_rows_of_any_range_come_from_any_blocks_into_any_others(T, size, new_size, seed, latent):
    draw = random.Random(seed)
    start = draw.randrange(T)
    stop = draw.randint(start, T)
    Hkv, Dk, Dv = draw.randint(1, 3), draw.randint(1, 4), draw.randint(1, 4)

    def memory(size: int):
        blocks = draw.sample(range(50), -(-T // size))
        pages = [torch.randn(50, size, Hkv, D) for D in (Dk, Dv)]
        return blocks, pages[0], None if latent else pages[1]

    (blocks, keys, values), (new_blocks, new_keys, new_values) = memory(size), memory(new_size)
    before = [pages.clone() for pages in (new_keys, new_values) if pages is not None]
    rows = read_rows(keys, values, slots_of(blocks, size, start, stop))
    assert rows.shape == (stop - start, Hkv, Dk + (0 if latent else Dv))
    write_rows(rows, new_keys, new_values, slots_of(new_blocks, new_size, start, stop))
    for t in range(start, stop):
        for old, new in ((keys, new_keys), (values, new_values)):
            if old is not None:
                assert torch.equal(new[new_blocks[t // new_size], t % new_size], old[blocks[t // size], t % size])
    written = {(new_blocks[t // new_size], t % new_size) for t in range(start, stop)}
    for pages, old in zip([new_keys] + [new_values] * (not latent), before, strict=True):
        for block in range(50):
            for i in range(new_size):
                assert (block, i) in written or torch.equal(pages[block, i], old[block, i])


@given(st.sampled_from(SPLITS), st.sampled_from(SPLITS), st.integers(0, 2**31), st.booleans())
def test_ranks_of_any_split_push_rows_to_ranks_of_any_other_and_each_has_what_a_gather_would_give_it(
    one, other, seed, latent
):
    """Keys and values, in scattered blocks of differing sizes on each rank, in chunks, as engines push them."""
    (heads, senders), (_, receivers), draw = one, other, random.Random(seed)
    if heads % receivers and receivers % heads:
        return
    T, Dk, Dv = draw.randint(1, 17), draw.randint(1, 3), draw.randint(1, 3)
    whole = [torch.randn(T, heads, D) for D in (Dk, Dv)][: 1 if latent else 2]

    def ranks(parts: int):
        """Of each rank its block size, its blocks of the sequence, and its pages of keys and of values."""
        made = []
        for part in range(parts):
            size, own = draw.randint(1, 6), len(heads_of(heads, parts, part))
            blocks = draw.sample(range(30), -(-T // size))
            made.append((size, blocks, [torch.randn(30, size, own, each.shape[2]) for each in whole]))
        return made

    there, here = ranks(senders), ranks(receivers)
    for part, (size, blocks, pages) in enumerate(there):
        for each, some in zip(whole, pages, strict=True):
            for t in range(T):
                some[blocks[t // size], t % size] = each[t, heads_of(heads, senders, part)]
    cuts = sorted({0, T, *(draw.randrange(T) for _ in range(2))})
    for start, stop in zip(cuts, cuts[1:], strict=False):
        for move in head_moves(heads, senders, receivers):
            size, blocks, (keys, *values) = there[move.sender]
            values = values[0] if values else None
            rows = read_rows(keys, values, slots_of(blocks, size, start, stop), heads=move.theirs)
            assert rows.shape[:2] == (stop - start, move.count)
            size, blocks, (keys, *values) = here[move.receiver]
            values = values[0] if values else None
            write_rows(rows, keys, values, slots_of(blocks, size, start, stop), heads=move.ours)
    for part, (size, blocks, pages) in enumerate(here):
        for each, some in zip(whole, pages, strict=True):
            gathered = torch.stack([some[blocks[t // size], t % size] for t in range(T)])
            assert torch.equal(gathered, each[:, heads_of(heads, receivers, part)])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: slots_of([1, 2], 0, 0, 1), "block_size must be at least 1"),
        (lambda: slots_of([1, 2], 4, 0, 9), "start and stop must be a range of the 2 blocks' 8 tokens, got 0 and 9"),
        (lambda: slots_of([1, 2], 4, 3, 2), "start and stop"),
        (lambda: head_moves(0, 1, 1), "heads must be at least 1"),
        (lambda: head_moves(8, 3, 1), "senders must be at least 1, and divide the 8 heads"),
        (lambda: head_moves(8, 2, 0), "receivers must be at least 1"),
        (lambda: relay([], 3, heads=1, block_size=4, parts=1), "pages must be of one rank at least"),
        (lambda: relay([torch.zeros(1, 4, 2, 3)], 3, heads=2, block_size=0, parts=1), "block_size must be at least 1"),
        (lambda: relay([torch.zeros(1, 4, 2, 3)], 5, heads=2, block_size=4, parts=1), r"pages\[0\].* room for 5"),
        (lambda: relay([torch.zeros(1, 4, 1, 3)], 4, heads=2, block_size=4, parts=1), r"pages\[0\].* H = 2 heads"),
        (lambda: write_rows(torch.zeros(2, 1, 3), torch.zeros(1, 4, 1, 2), None, torch.arange(2)), "rows must be"),
        (
            lambda: write_rows(
                torch.zeros(2, 2, 2), torch.zeros(1, 4, 3, 2), None, torch.arange(2), heads=slice(2, 4)
            ),
            r"rows must be \(T, H, Dk \+ Dv\) = \(2, 1, 2\)",
        ),
    ],
)
def test_what_cannot_be_laid_is_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize(("senders", "receivers"), [(2, 3), (1, 2), (3, 1)])
def test_ranks_that_hold_other_heads_and_other_blocks_send_what_each_receiver_lacks(senders, receivers):
    """Over real connections: a model's six heads lie on so many ranks, and then on others."""
    heads, T, size, new_size, D = 6, 17, 4, 5, 3
    whole = torch.arange(T * heads * 2 * D, dtype=torch.float32).view(T, heads, 2 * D)
    before, after = cut(whole, heads, senders, size, -7.0), cut(whole, heads, receivers, new_size, 0.0)
    moves = head_moves(heads, senders, receivers)

    def send_and_receive():
        me, got = dist.get_rank(), None
        if me >= senders:
            got = torch.zeros_like(after[me - senders])
        for move in moves:  # each rank takes its own, in the order of all
            if me == move.sender:
                keys, values = before[me].split(D, dim=-1)
                slots = slots_of(range(-(-T // size)), size, 0, T)
                dist.send(read_rows(keys, values, slots, heads=move.theirs), senders + move.receiver)
            elif me == senders + move.receiver:
                rows = torch.empty(T, move.count, 2 * D)
                dist.recv(rows, move.sender)
                slots = slots_of(range(-(-T // new_size)), new_size, 0, T)
                write_rows(rows, *got.split(D, dim=-1), slots, heads=move.ours)
        return got

    found = run(send_and_receive, senders + receivers, backend="gloo")[senders:]
    assert all(torch.equal(a, b) for a, b in zip(found, after, strict=True))
