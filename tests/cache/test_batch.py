"""What a step of many sequences is told: examples written by hand, and a plain loop over chunks; what is refused."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.cache import Batch, Chunk, Layout, batch_of, check_token_ids, padded_batch_of
from tests.support.waiting import nothing_waits

NAMES = ("tokens", "positions", "slot_mapping", "query_start_loc", "seq_lens", "block_table", "logits_indices")


def numbers(step: Batch) -> dict:
    found = {name: getattr(step, name) for name in NAMES}
    assert {x.dtype for x in found.values()} == {torch.int32}
    return {name: x.tolist() for name, x in found.items()}


def test_the_example_of_the_chapter():
    step = batch_of([Chunk(tokens=[5, 9, 2], computed=0, blocks=[3]), Chunk(tokens=[7], computed=40, blocks=[1])],
                    block_size=64)  # fmt: skip
    assert numbers(step) == {
        "tokens": [[5, 9, 2, 7]],
        "positions": [0, 1, 2, 40],
        "slot_mapping": [192, 193, 194, 104],
        "query_start_loc": [0, 3, 4],
        "seq_lens": [3, 41],
        "block_table": [[3], [1]],
        "logits_indices": [2, 3],
    }
    assert (step.tree_mask, step.max_query_len, step.max_seq_len, step.block_size) == (None, 3, 41, 64)


# Pages of 4: a prompt's second piece, which crosses two borders of pages; a draft of two behind the newest token, whose
# text has a hole (positions are not places); a prompt that is not over.
PAGED = [
    Chunk([10, 11, 12, 13, 14, 15], computed=3, blocks=[7, 2, 5]),
    Chunk(np.array([20, 21, 22]), computed=4, blocks=np.array([9, 0]), positions=[104, 105, 106], logits=3),
    Chunk((30, 31), blocks=(4,), logits=0),
]


def test_pages_by_hand():
    step = batch_of(PAGED, block_size=4, vocab_size=32)
    assert numbers(step) == {
        "tokens": [[10, 11, 12, 13, 14, 15, 20, 21, 22, 30, 31]],
        "positions": [3, 4, 5, 6, 7, 8, 104, 105, 106, 0, 1],
        "slot_mapping": [31, 8, 9, 10, 11, 20, 0, 1, 2, 16, 17],
        "query_start_loc": [0, 6, 9, 11],
        "seq_lens": [9, 7, 2],
        "block_table": [[7, 2, 5], [9, 0, -1], [4, -1, -1]],
        "logits_indices": [5, 6, 7, 8],
    }
    assert (step.max_query_len, step.max_seq_len, step.padded) == (6, 9, False)


def test_padded_on_the_left_by_hand():
    step = padded_batch_of(PAGED, block_size=4)
    assert numbers(step) == {
        "tokens": [[10, 11, 12, 13, 14, 15], [0, 0, 0, 20, 21, 22], [0, 0, 0, 0, 30, 31]],
        "positions": [[3, 4, 5, 6, 7, 8], [0, 0, 0, 104, 105, 106], [0, 0, 0, 0, 0, 1]],
        "slot_mapping": [31, 8, 9, 10, 11, 20, -1, -1, -1, 0, 1, 2, -1, -1, -1, -1, 16, 17],
        "query_start_loc": [0, 6, 12, 18],
        "seq_lens": [9, 7, 2],
        "block_table": [[7, 2, 5], [9, 0, -1], [4, -1, -1]],
        "logits_indices": [5, 9, 10, 11],
    }
    assert step.padded


def test_room_for_more_by_hand_and_a_copy_over_the_same_buffer():
    layout = Layout(tokens=5, sequences=4, blocks=3, logits=3)
    graph = batch_of([Chunk([1, 2, 3, 4, 5], blocks=[6, 7, 8], logits=2)], block_size=2, layout=layout)
    step = batch_of([Chunk([8], 3, [4, 1]), Chunk([9, 9], 0, [2])], block_size=2, layout=layout)
    expected = {
        "tokens": [[8, 9, 9, 0, 0]],
        "positions": [3, 0, 1, 0, 0],
        "slot_mapping": [3, 4, 5, -1, -1],
        "query_start_loc": [0, 1, 3, 3, 3],
        "seq_lens": [4, 2, 0, 0],
        "block_table": [[4, 1, -1], [2, -1, -1], [-1, -1, -1], [-1, -1, -1]],
        "logits_indices": [0, 2, 0],
    }
    assert numbers(step) == expected != numbers(graph)
    graph.buffer.copy_(step.buffer)
    assert numbers(graph) == expected


def test_a_tree_by_hand():
    """Of the newest token two guesses grow, and of the first of these another; beside it a token without a tree."""
    tree = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]], bool)
    draft = Chunk([1, 2, 3, 4], 5, [0], positions=[5, 6, 6, 7], logits=4, tree=tree)
    plain = Chunk([9] * 5, 0, [1])
    step = batch_of([plain, draft], block_size=16, layout=Layout(11, 2, 1, 5, tree=6))
    assert step.tree_mask.dtype == torch.bool and step.tree_mask.shape == (11, 6)
    assert step.tree_mask.int().tolist() == [[0] * 6] * 5 + [
        [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0], [0] * 6, [0] * 6,
    ]  # fmt: skip
    assert step.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 6, 7, 0, 0]
    padded = padded_batch_of([plain, draft], block_size=16)
    assert padded.tree_mask.shape == (10, 4)
    assert padded.tree_mask.int().tolist() == [[0] * 4] * 6 + tree.astype(int).tolist()


def test_without_a_cache_there_are_no_slots():
    step = batch_of([Chunk([1, 2]), Chunk([3], blocks=[5])], block_size=None)
    assert step.slot_mapping.tolist() == [-1, -1, -1] and step.block_table.shape == (2, 0)


@st.composite
def chunks(draw):
    """A block size, and what chunks are made of, their blocks all different."""
    size = draw(st.sampled_from([1, 2, 3, 16, 17]))
    free = draw(st.permutations(range(90)))
    found = []
    for _ in range(draw(st.integers(1, 5))):
        T, computed = draw(st.integers(1, 9)), draw(st.sampled_from([0, 1, 2, 7, 16]))
        need = -(-(computed + T) // size) + draw(st.integers(0, 1))
        blocks, free = free[:need], free[need:]
        positions = draw(st.none() | st.lists(st.integers(0, 999), min_size=T, max_size=T))
        tree = draw(st.none() | st.just(np.eye(T, dtype=bool)))
        tokens = draw(st.lists(st.integers(0, 99), min_size=T, max_size=T))
        found.append((tokens, computed, blocks, positions, draw(st.integers(0, T)), tree))
    return size, found


@given(case=chunks(), padded=st.booleans(), more=st.tuples(*[st.integers(0, 3)] * 4))
@settings(max_examples=80)
def test_any_step_is_packed_as_a_plain_loop_packs_it(case, padded, more):
    size, given_chunks = case[0], [Chunk(*each) for each in case[1]]
    longest = max(len(chunk.tokens) for chunk in given_chunks)
    rows, starts, wanted = [], [0], []
    for chunk in given_chunks:
        T = len(chunk.tokens)
        rows += [(0, 0, -1, ())] * (longest - T if padded else 0)
        for j in range(T):
            i = chunk.computed + j
            sees = () if chunk.tree is None else tuple(np.flatnonzero(chunk.tree[j]))
            position = i if chunk.positions is None else chunk.positions[j]
            rows.append((chunk.tokens[j], position, chunk.blocks[i // size] * size + i % size, sees))
            if j >= T - chunk.logits:
                wanted.append(len(rows) - 1)
        starts.append(len(rows))
    N, S = len(rows), len(given_chunks)
    width = max(len(chunk.blocks) for chunk in given_chunks)
    tree = max((len(chunk.tokens) for chunk in given_chunks if chunk.tree is not None), default=0)
    if padded:
        step = padded_batch_of(given_chunks, block_size=size)
        assert step.tokens.shape == step.positions.shape == (S, longest)
    else:
        layout = Layout(*(a + b for a, b in zip((N, S, width, len(wanted)), more, strict=True)), tree)
        step = batch_of(given_chunks, block_size=size, layout=layout)
        assert step.tokens.shape == (1, layout.tokens)
    parts = step.layout.views(step.buffer.numpy())
    for name, column in (("tokens", 0), ("positions", 1), ("slot_mapping", 2)):
        assert parts[name][:N].tolist() == [row[column] for row in rows]
    assert parts["query_start_loc"].tolist() == starts + [N] * (len(parts["query_start_loc"]) - S - 1)
    assert parts["seq_lens"][:S].tolist() == [chunk.computed + len(chunk.tokens) for chunk in given_chunks]
    for row, chunk in zip(parts["block_table"], given_chunks, strict=False):
        assert row.tolist() == [*chunk.blocks, *[-1] * (len(row) - len(chunk.blocks))]
    assert parts["logits_indices"][: len(wanted)].tolist() == wanted
    assert [tuple(np.flatnonzero(row)) for row in parts["tree_mask"][:N]] == [row[3] for row in rows]
    for name, n in (("tokens", N), ("positions", N), ("seq_lens", S), ("logits_indices", len(wanted))):
        assert not parts[name][n:].any()
    assert (parts["slot_mapping"][N:] == -1).all() and (parts["block_table"][S:] == -1).all()


@given(sizes=st.tuples(st.integers(1, 40), *[st.integers(0, 40)] * 4))
def test_parts_are_aligned_apart_and_inside(sizes):
    layout = Layout(*sizes)
    buffer = np.zeros(layout.size, np.int32)
    parts = layout.views(buffer)
    for name, part in parts.items():
        assert (part.__array_interface__["data"][0] - buffer.__array_interface__["data"][0]) % 64 == 0 or not part.size
        assert np.shares_memory(part, buffer) or not part.size
        assert part.shape == layout.shapes[name] == tuple(layout.views(torch.from_numpy(buffer))[name].shape)
        part.reshape(-1).view(np.uint8)[:] += 1
    assert buffer.view(np.uint8).max() <= 1, "two parts overlap"


def test_making_a_step_waits_for_nothing():
    with nothing_waits():
        batch_of(PAGED, block_size=4, vocab_size=99)
        padded_batch_of(PAGED, block_size=4, device="meta")


ONE = Chunk([1, 2, 3], 2, [0, 1])


@pytest.mark.parametrize(
    "given_chunks, options, message",
    [
        ([], {}, "chunks must be at least one"),
        ([ONE], {"block_size": 0}, "block_size must be at least 1 token, or None"),
        ([ONE, Chunk([], 0, [5])], {}, r"chunks\[1\].tokens must be at least one: leave out"),
        ([Chunk(np.array([[1, 2]]), 0, [5])], {}, r"tokens must be .* in a row, got int64 of shape \(1, 2\)"),
        ([Chunk(np.array([1.5]), 0, [5])], {}, r"chunks\[0\].tokens must be whole numbers in a row, got float64"),
        ([Chunk(np.array([True]), 0, [5])], {}, r"whole numbers in a row, got bool"),
        ([Chunk([-1], 0, [5])], {}, r"chunks\[0\].tokens must be from 0 to 2147483647, got -1 to -1"),
        ([ONE, Chunk([4, 9], 0, [5])], {"vocab_size": 9}, "chunks: their tokens must be from 0 to 8, got 1 to 9"),
        ([Chunk([1], -1, [5])], {}, r"chunks\[0\].computed must be at least 0, got -1"),
        ([Chunk([1], 0, [5], logits=2)], {}, r"chunks\[0\].logits must be from 0 to its 1 tokens, got 2"),
        ([Chunk([1], 0, [5], logits=-1)], {}, r"logits must be from 0 to its 1 tokens, got -1"),
        ([Chunk([1, 2], 0, [5], [7])], {}, r"chunks\[0\].positions must be one for each of its 2 tokens, got 1"),
        ([Chunk([1], 0, [5], [-7])], {}, r"chunks\[0\].positions must be from 0"),
        ([ONE, Chunk([1] * 3, 6, [5, 6])], {}, r"chunks\[1\]: 6 tokens and 3 more do not fit into 2 blocks of 4"),
        ([Chunk([1], 0, [-1])], {}, r"chunks\[0\].blocks must be from 0"),
        ([Chunk([1], 0, [2**30])], {}, r"blocks of 4 tokens must be below 536870912, got 1073741824"),
        ([Chunk([1], 3, [5]), ONE, Chunk([1], 3, [0])], {}, r"chunks\[1\] and chunks\[2\] .* slot 3: block 0"),
        ([Chunk([1, 2], 0, [5], tree=np.ones((2, 2)))], {}, r"tree must be bool \(2, 2\), got float64"),
        ([Chunk([1, 2], 0, [5], tree=np.eye(3, dtype=bool))], {}, r"bool \(2, 2\), got bool of shape \(3, 3\)"),
        ([Chunk([1, 2], 0, [5], tree=np.ones((2, 2), bool))], {}, "ancestors must come before it"),
        ([Chunk([1, 2], 0, [5], tree=np.zeros((2, 2), bool))], {}, "a token must see itself"),
        ([ONE], {"layout": Layout(2, 1, 2, 1)}, "layout is too small for this step: tokens = 2, where 3 are needed"),
        ([ONE], {"layout": Layout(3, 1, 1, 1)}, "blocks = 1, where 2 are needed"),
        ([ONE, Chunk([1], 0, [9])], {"layout": Layout(4, 1, 2, 2)}, "sequences = 1, where 2 are needed"),
        ([ONE], {"layout": Layout(3, 1, 2)}, "logits = 0, where 1 are needed"),
    ],
)  # fmt: skip
def test_a_step_that_cannot_be_is_refused(given_chunks, options, message):
    bare = inspect.unwrap(batch_of)  # without the checks of types that the tests add
    with pytest.raises(ValueError, match=message):
        bare(given_chunks, **{"block_size": 4} | options)


def test_sequences_may_read_the_same_blocks_where_neither_writes():
    step = batch_of([Chunk([1], 4, [0, 1]), Chunk([1], 4, [0, 2])], block_size=4)
    assert step.slot_mapping.tolist() == [4, 8] and step.block_table.tolist() == [[0, 1], [0, 2]]


def test_ids_are_checked_by_whoever_lets_them_in():
    check_token_ids(np.array([[0, 8]]), 9)
    check_token_ids(np.array([], int), 9)
    for wrong in ([0, 9], [-1, 3]):
        with pytest.raises(ValueError, match=f"prompt must be from 0 to 8, got {wrong[0]} to {wrong[1]}"):
            check_token_ids(np.array(wrong), 9, "prompt")


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_same_and_nobody_waits_for_the_copy():
    expected = padded_batch_of(PAGED, block_size=4)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step = padded_batch_of(PAGED, block_size=4, device="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.tokens.is_cuda and numbers(step) == numbers(expected)
