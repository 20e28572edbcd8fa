"""The host tier: what a pool says of it, and its memory. (Whole lives: tests/serving/test_scheduler_machine.py.)"""

import contextlib
import random

import pytest
import torch

from llmsys.cache import BlockPool, CacheSpec, Copy, CopyIn, CopyOut, Entry, HostPages, LayerCache, PagedCache
from llmsys.cache.host_pages import parts_of, slots_of
from tests.support.pools import assert_consistent, content
from tests.support.size import sized

A, B = list(range(100, 112)), list(range(200, 212))  # of three blocks of four tokens, each


def lived(pool, tokens):
    """A sequence came, was computed and went; what it hit, and the copies for it."""
    hit = pool.match([*tokens, 0])
    table = pool.allocate(len(tokens) + 1, hit)
    copies = pool.host.copies() if pool.host else []
    pool.register(table, [*tokens, 0], len(tokens) + 1)
    pool.free(table)
    assert_consistent(pool, [])
    return hit, copies


def test_what_is_evicted_goes_to_the_host_and_comes_back_when_it_is_hit():
    pool = BlockPool(5, 4, host_blocks=10)  # room for one of them
    assert lived(pool, A) == (pool.match([]), [])
    _, copies = lived(pool, B)
    assert copies == [CopyOut(3, 0), CopyOut(2, 1), CopyOut(1, 2)], "the tail goes first"
    hit, copies = lived(pool, A)
    assert hit.tokens == 12 and hit.blocks == (None,) * 3
    assert [each.slot for each in copies if isinstance(each, CopyIn)] == [2, 1, 0]
    assert [each.slot for each in copies if isinstance(each, CopyOut)] == [3, 4, 5], "to make room for them"
    stats = pool.host.stats
    assert (stats.blocks, stats.held, stats.stored, stats.returned, stats.dropped) == (10, 6, 6, 3, 0)
    assert pool.stats.hit_tokens == 12


def test_what_has_come_back_is_kept_and_not_copied_again_when_it_is_evicted_again():
    pool = BlockPool(5, 4, host_blocks=10)
    for _ in range(4):
        for tokens in (A, B):
            lived(pool, tokens)
    assert pool.host.stats.stored == 6 and pool.host.stats.returned == 3 * 6


def test_of_a_prefix_some_blocks_may_be_here_and_some_there():
    pool = BlockPool(5, 4, host_blocks=10)
    lived(pool, A)
    table = pool.allocate(8)  # takes the blank block and A's tail
    hit = pool.match([*A, 0])
    assert hit.blocks[:2] == (1, 2) and hit.blocks[2] is None and hit.tokens == 12
    pool.free(table)
    again = pool.allocate(13, hit)
    assert again.blocks[:2] == [1, 2] and again.blocks[2] in (3, 4)
    assert pool.host.copies() == [CopyOut(3, 0), CopyIn(0, again.blocks[2])]


def test_what_is_about_to_come_back_keeps_its_slots_while_room_is_made_for_it():
    pool = BlockPool(5, 4, host_blocks=3)
    lived(pool, A)
    lived(pool, B)
    hit, copies = lived(pool, A)
    back = [n for n, each in enumerate(copies) if isinstance(each, CopyIn)]
    assert hit.tokens == 12 and sorted(copies[n].slot for n in back) == [0, 1, 2]
    assert all(n > back[-1] for n, each in enumerate(copies) if isinstance(each, CopyOut)), "no slot was overwritten"
    stats = pool.host.stats
    assert (stats.held, stats.stored, stats.returned, stats.dropped) == (3, 4, 3, 1)


def test_slots_are_reused_the_longest_unused_first_and_tails_before_heads():
    pool = BlockPool(5, 4, host_blocks=4)
    lived(pool, A)
    lived(pool, B)
    lived(pool, list(range(12)))
    assert [content(each)[1][0] for each in pool.host.contents().values()] == [100, 200, 200, 200]
    assert [len(content(each)[1]) for each in pool.host.contents().values()] == [4, 12, 8, 4]


def test_a_rule_decides_and_without_it_nothing_has_changed():
    offers = []

    def takes_back(offer):
        offers.append(offer)
        return len(offers) > 1

    pool = BlockPool(5, 4, host_blocks=10, takes_back=takes_back)
    lived(pool, A)
    lived(pool, B)
    assert pool.match([*A, 0, 0, 0]).tokens == 0 and pool.match([*A, 0]).tokens == 12
    assert offers == [(0, 12, 15, 3), (0, 12, 13, 3)]


def test_a_failed_steps_copies_are_not_believed():
    pool = BlockPool(5, 4, host_blocks=10)
    lived(pool, A)
    _, first = lived(pool, B)
    hit = pool.match([*A, 0])
    table = pool.allocate(13, hit)
    second = pool.host.copies()
    pool.free(table)
    pool.distrust(second)
    assert_consistent(pool, [])
    assert pool.match([*A, 0]).blocks == (None,) * 3, "they are still on the host, from where they came"
    assert pool.match([*B, 0]).tokens == 0, "what had made room for them is lost"
    pool.distrust(first)
    assert pool.match([*A, 0]).tokens == 0 and pool.host.stats.held == 0
    assert_consistent(pool, [])


def test_a_hit_is_out_of_date_when_the_host_has_lost_it():
    pool = BlockPool(5, 4, host_blocks=10)
    lived(pool, A)
    _, copies = lived(pool, B)
    hit = pool.match([*A, 0])
    pool.distrust(copies)
    with pytest.raises(ValueError, match="hit is out of date"):
        pool.allocate(13, hit)


def test_a_hit_is_out_of_date_when_another_has_brought_its_blocks_back():
    pool = BlockPool(5, 4, host_blocks=10)
    lived(pool, A)
    lived(pool, B)
    hit = pool.match([*A, 0])
    lived(pool, A)
    with pytest.raises(ValueError, match="hit is out of date"):
        pool.allocate(13, hit)
    assert_consistent(pool, [])
    assert pool.match([*A, 0]).tokens == 12


def test_without_a_host_tier_there_is_none():
    pool = BlockPool(5, 4)
    assert pool.host is None
    for blocks in (-1, True):
        with pytest.raises(ValueError, match="host_blocks must be a whole number of at least 1, or 0"):
            BlockPool(5, 4, host_blocks=blocks)


# Its memory


def drawn_spec(gen) -> CacheSpec:
    """Layers of odd sizes and several types; some keep values in their keys. Their numbers need not begin at 0."""
    layers = []
    for layer in gen.sample(range(20), gen.randint(1, 4)):
        Dk = gen.choice([1, 3, 8, 17])
        inside = gen.random() < 0.3
        Dv = gen.randint(1, Dk) if inside else gen.choice([1, 5, 8])
        dtype = gen.choice([torch.float32, torch.bfloat16, torch.float64, torch.float16])
        layers.append(LayerCache(layer, gen.randint(1, 3), Dk, Dv, dtype, values_in_keys=inside))
    return CacheSpec(tuple(layers))


def filled(spec, num_blocks, block_size, device="cpu"):
    """(keys, values) of all layers, random numbers."""
    keys, values = {}, {}
    for each in spec.layers:
        shape = (num_blocks, block_size, each.heads)
        keys[each.layer] = torch.randn(*shape, each.Dk, dtype=torch.float32, device=device).to(each.dtype)
        if not each.values_in_keys:
            values[each.layer] = torch.randn(*shape, each.Dv, dtype=torch.float32, device=device).to(each.dtype)
    return keys, values


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(sized(short=8, full=100)))
def test_whatever_is_copied_to_and_fro_in_any_order_is_where_it_should_be(seed, device, monkeypatch):
    gen = random.Random(seed)
    torch.manual_seed(seed)
    spec, block_size, num_blocks, slots = drawn_spec(gen), gen.choice([1, 3, 16]), gen.randint(2, 9), gen.randint(1, 6)
    cache = PagedCache(
        num_blocks=num_blocks, block_size=block_size, spec=spec, host=HostPages(slots, spec, block_size, device=device)
    )
    monkeypatch.setattr("llmsys.cache.host_pages.AT_ONCE", gen.choice([1, 3 * cache.host.row_bytes, 64 << 20]))
    cache._keys, cache._values = filled(spec, num_blocks, block_size, device)
    pages = [*cache._keys.values(), *cache._values.values()]
    expected, on_host = [each.clone() for each in pages], [{} for _ in pages]
    for _ in range(5):
        copies = []
        for _ in range(gen.randint(0, 12)):
            slot, block, other = gen.randrange(slots), gen.randrange(num_blocks), gen.randrange(num_blocks)
            kinds = [Copy(block, other), CopyOut(block, slot), CopyIn(slot, block)]
            copy = gen.choice(kinds if slot in on_host[0] else kinds[:2])
            copies.append(copy)
            for x, held in zip(expected, on_host, strict=True):
                if isinstance(copy, Copy):
                    x[other] = x[block].clone()
                elif isinstance(copy, CopyOut):
                    held[slot] = x[block].clone()
                else:
                    x[block] = held[slot]
        cache.copy_blocks(copies)
        for x, of_cache in zip(expected, pages, strict=True):
            assert torch.equal(x, of_cache)
            if device == "cuda":  # while what was copied out may be on its way
                x.mul_(0.5), of_cache.mul_(0.5)


@pytest.mark.gpu
def test_a_whole_pool_that_crosses_at_once_takes_no_more_of_the_device_than_a_few_of_its_blocks(monkeypatch):
    spec = CacheSpec((LayerCache(0, 4, 64, 64, torch.bfloat16),))
    cache = PagedCache(num_blocks=400, block_size=64, spec=spec, host=HostPages(400, spec, 64, device="cuda"))
    cache._keys, cache._values = filled(spec, 400, 64, "cuda")
    expected = cache._keys[0].clone(), cache._values[0].clone()
    monkeypatch.setattr("llmsys.cache.host_pages.AT_ONCE", 4 * cache.host.row_bytes)
    for copies in [CopyOut(n, n) for n in range(400)], [CopyIn(n, n) for n in range(400)]:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        cache.copy_blocks(copies)
        assert torch.cuda.max_memory_allocated() - before < 20 * cache.host.row_bytes
        torch.cuda.synchronize()
        if isinstance(copies[0], CopyOut):
            cache._keys[0].zero_(), cache._values[0].zero_()
    assert torch.equal(cache._keys[0], expected[0]) and torch.equal(cache._values[0], expected[1])


class Stream:
    """Written down: whom it waits for."""

    def __init__(self, name, said):
        self.name, self.said = name, said

    def wait_stream(self, other):
        self.said.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self.said.append(f"{self.name} waits for an event")

    def record_event(self):
        return object()


def test_turns_on_a_gpu_share_their_rows_and_wait_for_each_other(monkeypatch):
    said, spec = [], CacheSpec((LayerCache(0, 2, 3, 4, torch.float32),))
    host = HostPages(5, spec, 2)
    cache = PagedCache(num_blocks=6, block_size=2, spec=spec, host=host)
    cache._keys, cache._values = filled(spec, 6, 2)
    expected = cache._keys[0].clone(), cache._values[0].clone()
    steps, host._out, host._in = (Stream(name, said) for name in ("steps", "out", "in"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: steps)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(host, "_indices", torch.tensor)
    monkeypatch.setattr("llmsys.cache.host_pages.AT_ONCE", 2 * host.row_bytes)
    taken, empty = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **more: taken.append(size) or empty(*size, **more))
    cache.copy_blocks([CopyOut(n + 1, n) for n in range(5)])
    assert said == ["out waits for in", *["out waits for steps", "steps waits for out"] * 2, "out waits for steps"]
    said.clear()
    cache._keys[0].zero_(), cache._values[0].zero_()
    cache.copy_blocks([CopyIn(n, n + 1) for n in range(5)])
    turn = ["in waits for an event", "steps waits for in"]
    assert [each for each in said if each != turn[0]] == [turn[1], *["in waits for steps", turn[1]] * 2]
    assert taken == [(2, host.row_bytes)] * 2, "of two blocks, once for all that go out, and for all that come in"
    assert torch.equal(cache._keys[0][1:], expected[0][1:]) and torch.equal(cache._values[0][1:], expected[1][1:])


def test_a_slot_takes_a_blocks_bytes_and_its_parts_are_aligned():
    gen = random.Random(0)
    for _ in range(50):
        spec, block_size = drawn_spec(gen), gen.choice([1, 3, 16])
        parts, row = parts_of(spec, block_size)
        used = sum(part.end - part.start for part in parts)
        assert used == block_size * spec.bytes_per_token <= row < used + 16 * len(parts)
        assert all(part.start % 16 == 0 for part in parts) and row % 16 == 0
        pages = HostPages(slots_of(5 * row + row - 1, spec, block_size), spec, block_size)
        assert pages.slots == 5 and pages.bytes == 5 * row
        with pytest.raises(ValueError, match="host_cache must have room for a block"):
            slots_of(row - 1, spec, block_size)


def test_a_cache_without_such_memory_refuses_before_it_copies_anything():
    spec = CacheSpec((LayerCache(0, 1, 4, 4, torch.float32),))
    cache = PagedCache(num_blocks=3, block_size=2, spec=spec)
    cache._keys, cache._values = filled(spec, 3, 2)
    before = cache._keys[0].clone()
    with pytest.raises(ValueError, match="host must be given to a paged cache whose pool has a host tier"):
        cache.copy_blocks([Copy(1, 2), CopyOut(1, 0)])
    assert torch.equal(cache._keys[0], before)


def test_memory_that_cannot_be_is_refused():
    plain = LayerCache(0, 1, 4, 4, torch.float32)
    with pytest.raises(ValueError, match="slots must be at least 1"):
        HostPages(0, CacheSpec((plain,)), 2)
    more = LayerCache(3, 1, 4, 4, torch.float32, entries=(Entry("index", 4, torch.float32),))
    with pytest.raises(ValueError, match="layer 3 has further entries"):
        HostPages(1, CacheSpec((plain, more)), 2)
