"""The paged cache: whatever the order of steps and blocks, every token sees what came before it, and nothing else."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention import naive_attention
from llmsys.attention.head_norms import HeadNorms, normalise
from llmsys.attention.paged import paged_attention_reference
from llmsys.attention.rotary import rotate, rotation
from llmsys.cache import (
    Batch,
    BlockPool,
    BlockTable,
    CacheSpec,
    Chunk,
    Copy,
    Entry,
    LayerCache,
    OutOfBlocks,
    PagedCache,
    as_backend,
    batch_of,
    padded_batch_of,
)
from llmsys.cache.backend import takes_norms
from llmsys.cache.groups import heads_first, tokens_first
from llmsys.hardware.tier import interpreting, triton_installed
from llmsys.models import Llama, LlamaConfig, generate, generate_batch
from tests.support.poison import poison_new_memory

KERNELS = ["torch", "triton"] if triton_installed() and interpreting() else ["torch"]


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    poison_new_memory(monkeypatch)


@st.composite
def runs(draw):
    """Sizes (Hkv, group, Dk, Dv or None, R), a block size, and a run: each sequence's length, and of each step whether
    it is padded, and which sequences compute how many tokens."""
    R = 2 * draw(st.integers(0, 3))
    Dk = R + draw(st.sampled_from([1, 2, 5]))
    Dv = draw(st.sampled_from([None, 1, 6]))
    sizes = draw(st.integers(1, 3)), draw(st.integers(1, 3)), Dk, Dv, R
    lengths = draw(st.lists(st.integers(1, 19), min_size=1, max_size=4))
    left, steps = dict(enumerate(lengths)), []
    while left:
        some = draw(st.permutations(sorted(left)))[: draw(st.integers(1, len(left)))]
        step = [(i, min(left[i], draw(st.sampled_from([1, 1, 2, 3, 7, 19])))) for i in some]
        left = {i: n - dict(step).get(i, 0) for i, n in left.items()}
        left = {i: n for i, n in left.items() if n}
        steps.append((draw(st.booleans()), step))
    return sizes, draw(st.sampled_from([1, 3, 4, 16])), lengths, steps, draw(st.integers(0, 2**31))


def check_run(case, kernel):
    (Hkv, group, Dk, Dv, R), block_size, lengths, steps, seed = case
    random = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if kernel == "torch" else torch.float32
    sequences = [  # q, k, v of two layers
        [[torch.randn(1, H, T, D, generator=random, dtype=dtype) if D else None
          for H, D in ((Hkv * group, Dk), (Hkv, Dk), (Hkv, Dv))] for _ in range(2)] for T in lengths
    ]  # fmt: skip

    def turn_of(positions):
        return rotation(positions, R, dtype=dtype) if R else None

    expected = []
    for layers, T in zip(sequences, lengths, strict=True):
        turn = turn_of(torch.arange(T))
        expected.append([
            naive_attention(rotate(q, turn), rotate(k, turn), k[..., : Dk - R] if v is None else v, causal=True)
            for q, k, v in layers
        ])  # fmt: skip
    pool = BlockPool(2 + sum(-(-T // block_size) for T in lengths), block_size)
    tables = [pool.allocate(0) for _ in lengths]
    cache = PagedCache(kernel, num_blocks=pool.num_blocks, block_size=block_size)
    computed = [0] * len(lengths)
    for padded, step in steps:
        for i, n in step:
            pool.extend(tables[i], computed[i] + n)
        chunks = [Chunk(range(n), computed[i], tables[i].blocks) for i, n in step]
        batch = (padded_batch_of if padded else batch_of)(chunks, block_size=block_size)
        T = batch.tokens.shape[1]

        def side_by_side(x, i, n, padded=padded, T=T):
            x = x[:, :, computed[i] : computed[i] + n]
            return torch.nn.functional.pad(x, (0, 0, T - n, 0)) if padded else x

        for layer in range(2):
            parts = zip(*[
                [x if x is None else side_by_side(x, i, n) for x in sequences[i][layer]] for i, n in step
            ], strict=True)  # fmt: skip
            q, k, v = (None if each[0] is None else torch.cat(each, dim=0 if padded else 2) for each in parts)
            o = cache.attend(layer, q, k, v, batch, turn=turn_of(batch.positions))
            start = 0
            for row, (i, n) in enumerate(step):
                got = o[row, :, T - n :] if padded else o[0, :, start : start + n]
                start += n
                should = expected[i][layer][0, :, computed[i] : computed[i] + n]
                torch.testing.assert_close(got, should, atol=2e-5, rtol=2e-5)
        for i, n in step:
            computed[i] += n


@settings(max_examples=40)
@given(case=runs())
def test_whatever_the_order_every_token_sees_what_came_before_it(case):
    if case[0][3] is None and case[0][2] == case[0][4]:
        return  # every column turns, so none can be a value
    check_run(case, "torch")


@pytest.mark.skipif("triton" not in KERNELS, reason="Triton's interpreter is not here")
@settings(max_examples=4)
@given(case=runs())
def test_so_it_is_with_the_kernels(case):
    check_run(case, "triton")


@pytest.fixture(scope="module")
def tiny() -> Llama:
    torch.manual_seed(0)
    config = LlamaConfig(
        name="tiny", vocab_size=61, hidden_size=32, layers=2, heads=6, kv_heads=2, head_size=8, mlp_size=48,
        context_length=64, tied_embeddings=False,
    )  # fmt: skip
    model = Llama(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.dim() == 2 else 1))
    return model.requires_grad_(False)


PROMPT = [5, 11, 2, 60, 3, 3, 17]


def uncached(model, prompt, n):
    return generate(model, prompt, cache=False, max_new_tokens=n).tokens


def test_the_name_is_enough_to_generate_the_same_tokens(tiny):
    assert generate(tiny, PROMPT, attention="paged", max_new_tokens=20).tokens == uncached(tiny, PROMPT, 20)
    assert isinstance(as_backend("paged", capacity=5), PagedCache)


def test_several_prompts_at_once_get_each_what_it_gets_alone(tiny):
    prompts = [PROMPT, [9], list(range(30))]
    said = generate_batch(tiny, prompts, attention="paged", max_new_tokens=12)
    assert [each.tokens for each in said] == [uncached(tiny, prompt, 12) for prompt in prompts]


@pytest.mark.parametrize("block_size", [1, 3, 16, 64])
def test_blocks_of_any_size_give_the_same_tokens(tiny, block_size):
    cache = PagedCache(capacity=40, block_size=block_size, spec=tiny.cache_spec())
    assert generate(tiny, PROMPT, attention=cache, max_new_tokens=20).tokens == uncached(tiny, PROMPT, 20)
    assert cache.pool.stats.used == -(-26 // block_size) and cache.length == 26
    assert cache.bytes == cache.num_blocks * block_size * tiny.cache_spec().bytes_per_token


@pytest.mark.skipif("triton" not in KERNELS, reason="Triton's interpreter is not here")
def test_the_kernels_give_the_same_tokens(tiny):
    cache = PagedCache("triton", capacity=16, block_size=4)
    assert generate(tiny, PROMPT, attention=cache, max_new_tokens=3).tokens == uncached(tiny, PROMPT, 3)


def test_prompts_in_pieces_beside_decodes_give_each_the_tokens_it_gets_alone(tiny):
    prompts = [PROMPT, [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
    expected = [uncached(tiny, prompt, 6) for prompt in prompts]
    pool = BlockPool(12, 4)
    cache = PagedCache(num_blocks=12, block_size=4)
    texts = [list(prompt) for prompt in prompts]
    tables, computed = [pool.allocate(0) for _ in prompts], [0, 0, 0]
    while any(len(text) < len(prompt) + 6 for text, prompt in zip(texts, prompts, strict=True)):
        chunks, who = [], []
        for i, text in enumerate(texts):
            if len(text) == len(prompts[i]) + 6:
                continue
            some = text[computed[i] : computed[i] + 3]
            pool.extend(tables[i], computed[i] + len(some))
            whole = computed[i] + len(some) == len(text)
            chunks.append(Chunk(some, computed[i], tables[i].blocks, logits=int(whole)))
            computed[i] += len(some)
            who += [i] * whole
        step = batch_of(chunks, block_size=4)
        with torch.inference_mode():
            best = tiny(step.tokens, cache, step)[0].argmax(-1).tolist()
        for i, token in zip(who, best, strict=True):
            texts[i].append(token)
    assert [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)] == expected


def test_a_tree_sees_its_own_branch(tiny):
    """Two guesses for one place, in one step, get what each gets when it is the only one."""
    pool = BlockPool(20, 4)
    table = pool.allocate(len(PROMPT) + 3)

    def logits(cache, tokens, computed, **options):
        step = batch_of([Chunk(tokens, computed, table.blocks, **options)], block_size=4)
        with torch.inference_mode():
            return tiny(step.tokens, cache, step)[0]

    n = len(PROMPT)
    tree = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool).numpy()
    for kernel in KERNELS:
        cache = PagedCache(kernel, num_blocks=20, block_size=4)
        logits(cache, PROMPT, 0)
        both = logits(cache, [7, 20, 40], n, tree=tree, positions=[n, n + 1, n + 1], logits=3)
        for guess, row in ((20, 1), (40, 2)):
            alone = PagedCache("torch", num_blocks=20, block_size=4)
            expected = logits(alone, [*PROMPT, 7, guess], 0)[-1]
            torch.testing.assert_close(both[row], expected, atol=1e-4, rtol=1e-4)


def test_copied_blocks_hold_the_same_and_copies_may_follow_each_other(tiny):
    cache = PagedCache(num_blocks=8, block_size=4)
    step = batch_of([Chunk(PROMPT, 0, [3, 1])], block_size=4)
    with torch.inference_mode():
        tiny(step.tokens, cache, step)
        cache.copy_blocks([Copy(3, 5), Copy(1, 2), Copy(5, 6), Copy(2, 5)])
        steps = [batch_of([Chunk([8], 7, blocks)], block_size=4) for blocks in ([3, 1], [6, 2], [6, 5])]
        results = [tiny(step.tokens, cache, step) for step in steps]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    cache.copy_blocks([])


def test_ones_own_kernel_and_ones_own_stage_attend(tiny):
    calls = []

    def kernel(q, key_pages, value_pages, **step):
        calls.append((q.shape, step["max_query_len"], step["max_seq_len"]))
        return paged_attention_reference(q, key_pages, value_pages, **step)

    def stage(q, k, v, *, causal):
        calls.append((q.shape, k.shape[2]))
        return naive_attention(q, k, v, causal=causal)

    expected = uncached(tiny, PROMPT, 2)
    assert generate(tiny, PROMPT, attention=PagedCache(kernel, capacity=9), max_new_tokens=2).tokens == expected
    assert calls == [((7, 6, 8), 7, 7)] * 2 + [((1, 6, 8), 1, 8)] * 2
    calls.clear()
    assert generate(tiny, PROMPT, attention=PagedCache(stage=stage, capacity=9), max_new_tokens=2).tokens == expected
    assert calls == [((1, 6, 7, 8), 7)] * 2 + [((1, 6, 1, 8), 8)] * 2


class NumbersOnly:
    """The least that a pool can be: it hands out each block once, in an order of its own."""

    def __init__(self, num_blocks: int, block_size: int):
        self.num_blocks, self.block_size = num_blocks, block_size
        self.left = list(range(1, num_blocks))
        self.random = random.Random(0)

    @property
    def free_blocks(self):
        return len(self.left)

    def allocate(self, length):
        table = BlockTable([], 0)
        self.extend(table, length)
        return table

    def extend(self, table, length):
        while len(table.blocks) * self.block_size < length:
            table.blocks.append(self.left.pop(self.random.randrange(len(self.left))))
        table.length = length

    def free(self, table):
        self.left += table.blocks
        table.blocks.clear()


@pytest.mark.parametrize("kind", [BlockPool, NumbersOnly])
@pytest.mark.parametrize("block_size", [1, 5])
def test_a_given_pool_hands_out_the_blocks_and_gets_them_back(tiny, kind, block_size):
    pool = kind(60, block_size)
    others = pool.allocate(7)  # somebody else's, from before
    cache = PagedCache(pool=pool)
    for prompt in (PROMPT, [9, 3, 9]):  # one after the other, in what the first one gave back
        free = pool.free_blocks
        assert generate(tiny, prompt, attention=cache, max_new_tokens=12).tokens == uncached(tiny, prompt, 12)
        assert free - pool.free_blocks == -(-(len(prompt) + 11) // block_size)
        cache.end()
        assert (pool.free_blocks, cache.length) == (free, 0)
    tokens = torch.tensor([PROMPT, PROMPT[::-1]])  # two rows, where there was one
    with torch.inference_mode():
        expected = [tiny(row[None], as_backend("naive", cache=False)) for row in tokens]
        torch.testing.assert_close(tiny(tokens, cache), torch.cat(expected), atol=1e-4, rtol=1e-4)
    assert cache.pool is pool and (cache.num_blocks, cache.block_size) == (60, block_size)
    assert len(others.blocks) == -(-7 // block_size)


def test_two_caches_in_one_pool_use_other_blocks():
    pool = BlockPool(9, 2)
    caches = [PagedCache(pool=pool) for _ in range(2)]
    for cache in caches:
        cache.begin(torch.zeros(2, 3))
    assert pool.free_blocks == 0
    with pytest.raises(OutOfBlocks, match="2 blocks of 2 tokens .* for 2 sequences of 5 tokens, and 0 are free"):
        caches[0].begin(torch.zeros(2, 2))
    caches[1].end()
    caches[0].begin(torch.zeros(2, 2))
    assert pool.free_blocks == 2


def heads(T, B=1, D=4, H=2):
    return torch.randn(B, H, T, D)


def attend(cache, batch, T, layer=0, B=1, **sizes):
    return cache.attend(layer, heads(T, B, H=4), heads(T, B, **sizes), heads(T, B), batch)


def test_what_does_not_fit_changes_nothing():
    cache = PagedCache(num_blocks=4, block_size=4)
    attend(cache, cache.begin(torch.zeros(2, 3)), 3, B=2)
    with pytest.raises(OutOfBlocks):
        cache.begin(torch.zeros(2, 2))
    assert cache.length == 3 and cache.pool.stats.used == 2
    attend(cache, cache.begin(torch.zeros(2, 1)), 1, B=2)
    assert cache.length == 4


def test_rows_at_once_go_on_each_with_its_own():
    cache = PagedCache(capacity=9, block_size=2)
    whole = [heads(9, 3) for _ in range(3)]
    expected = naive_attention(*whole, causal=True)
    start = 0
    for n in (4, 1, 3, 1):
        some = [x[:, :, start : start + n] for x in whole]
        o = cache.attend(0, *some, cache.begin(torch.zeros(3, n)))
        torch.testing.assert_close(o, expected[:, :, start : start + n], atol=1e-5, rtol=1e-5)
        start += n
    with pytest.raises(ValueError, match="holds 9 tokens of at most 9, and 1 more do not fit"):
        cache.begin(torch.zeros(3, 1))
    assert cache.num_blocks == 1 + 3 * 5


@pytest.mark.parametrize("kernel", KERNELS)
def test_heads_may_be_normalised_on_their_way_before_they_are_turned(kernel):
    norms = HeadNorms(torch.randn(4), torch.randn(4), 1e-5)
    caches = [PagedCache(kernel, capacity=9, block_size=2) for _ in range(2)]
    for n in (5, 1):
        q, k, v = heads(n, 2, H=6), heads(n, 2), heads(n, 2)
        batch, other = (cache.begin(torch.zeros(2, n)) for cache in caches)
        turn = rotation(batch.positions, 4)
        plain = normalise(q, norms.q, 1e-5), normalise(k, norms.k, 1e-5)
        expected = caches[0].attend(0, *plain, v, batch, turn=turn)
        got = caches[1].attend(0, q, k, v, other, turn=turn, norms=norms)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert takes_norms(caches[0]) and not takes_norms(as_backend("naive"))


def test_between_a_models_layout_and_the_pages_nothing_is_copied():
    """q, k and v are pieces of one product, (B, T, heads · D), and o goes back into that order."""
    for B, T in ((1, 7), (3, 1), (3, 5)):
        qkv = torch.randn(B, T, 8 * 4)
        q, _, _ = qkv.view(B, T, 8, 4).transpose(1, 2).split((4, 2, 2), dim=1)
        assert tokens_first(q).data_ptr() == qkv.data_ptr()
        o = torch.randn(B * T, 4, 4)
        assert heads_first(o, B).transpose(1, 2).reshape(B, T, -1).data_ptr() == o.data_ptr()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "cuda", "capacity": 1}, 'kernel must be "torch", "triton", a function or None'),
        ({"kernel": "torch", "stage": naive_attention, "capacity": 1}, "kernel and stage cannot both"),
        ({}, "num_blocks must be given, or a pool, or capacity"),
        ({"num_blocks": 1}, "num_blocks must be at least 2, got 1"),
        ({"capacity": 0}, "capacity must be at least 1, got 0"),
        ({"capacity": 4, "sequences": 0}, "sequences must be at least 1, got 0"),
        ({"capacity": 4, "block_size": 0}, "block_size must be at least 1, got 0"),
        ({"pool": BlockPool}, "pool must be a BlockPool, or an object with its num_blocks, .*; got <class"),
        ({"pool": [1, 2]}, "got a list without num_blocks and block_size and free_blocks and allocate and free"),
        ({"pool": BlockPool(9), "num_blocks": 8}, "num_blocks must be left out where a pool is given, .* 9, got 8"),
        ({"pool": BlockPool(9, 4), "block_size": 16}, "block_size must be left out where a pool is given, which has 4"),
    ],
)
def test_a_cache_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PagedCache(**options)


def test_a_spec_with_further_entries_is_refused():
    layer = LayerCache(0, 1, 8, 8, torch.float32, entries=(Entry("index", 4, torch.float32),))
    with pytest.raises(ValueError, match="the paged cache keeps keys and values alone, and layer 0 wants index"):
        PagedCache(capacity=4, spec=CacheSpec((layer,)))


def test_steps_that_cannot_be_are_refused():
    one = Chunk([1, 2], 0, [3])
    with pytest.raises(ValueError, match="num_blocks .* must be given to a paged cache whose caller"):
        attend(PagedCache(capacity=8, block_size=4), batch_of([one], block_size=4), 2)
    cache = PagedCache(num_blocks=4, block_size=4)
    for batch, message in (
        (batch_of([one], block_size=2), "batch must be made with the cache's block_size, 4, got 2"),
        (batch_of([Chunk([1, 2], 0, [4])], block_size=4), r"chunks\[0\].blocks must be from 0 to 3, got 4"),
        (Batch(torch.arange(2)), "batch must be what begin returned"),
    ):
        with pytest.raises(ValueError, match=message):
            attend(cache, batch, 2)
    attend(cache, batch_of([one], block_size=4), 2)
    with pytest.raises(ValueError, match="layer 0 must hand over keys of 2 heads .* got keys of 1 heads"):
        attend(cache, batch_of([one], block_size=4), 2, H=1)
    with pytest.raises(ValueError, match="give it one again"):
        cache.begin(torch.zeros(1, 1))


@pytest.mark.parametrize("result", [lambda q: q[:, :1], lambda q: q.double(), lambda q: None])
def test_a_kernel_that_returns_something_else_is_told_so(result):
    cache = PagedCache(lambda q, *pages, **step: result(q), capacity=4)
    with pytest.raises(ValueError, match=r"kernel must return o \(N, Hq, Dv\) = \(2, 4, 4\)"):
        attend(cache, cache.begin(torch.zeros(1, 2)), 2)
