"""The pool's stepper shows what a pool answers: its tables, references and copies, and the sums of a chat service."""

import random
import statistics
import time
from collections import Counter
from functools import cache
from itertools import pairwise, product
from xml.etree import ElementTree

import pytest

from llmsys.cache.block_pool import BlockPool
from llmsys.viz.paged_kv_cache import stepper
from llmsys.viz.paged_kv_cache.chat import SCRIPT, SLOTS, play
from llmsys.viz.paged_kv_cache.pool_frame import draw
from llmsys.viz.paged_kv_cache.stepper import SIZES, describe, most_telling

SETTINGS = [*product(SIZES, (True, False))]


@cache  # several tests look at the same frames
def moments_of(size, sharing=True):
    return play(BlockPool(1 + SLOTS // size, size), sharing=sharing)


@pytest.mark.parametrize(("size", "sharing"), SETTINGS)
def test_references_are_entries_of_tables_and_a_block_holds_the_words_of_all_its_tables(size, sharing):
    for moment in moments_of(size, sharing):
        entries = Counter(id for table in moment.tables for id in table.blocks)
        blocks = {block.id: block for block in moment.blocks}
        assert {id: len(block.owners) for id, block in blocks.items() if block.owners} == dict(entries)
        for table in moment.tables:
            assert len(table.blocks) == -(-len(table.words) // size)
            for n, id in enumerate(table.blocks):
                words = table.words[n * size : (n + 1) * size]
                assert blocks[id].words[: len(words)] == words
        assert sum(moment.count(state) for state in ("used", "cached", "free")) == SLOTS // size


@pytest.mark.parametrize("size", SIZES)
def test_every_token_is_computed_or_found_and_sharing_changes_no_text(size):
    shared, alone = moments_of(size), moments_of(size, False)
    prompts = sum(len(text.split()) for what, _, text in (step for step in SCRIPT if step[0] == "arrive"))
    said = sum(len(text.split()) for step in SCRIPT if step[0] == "say" for text in step[1].values())
    fork = len(SCRIPT[0][2].split())
    assert alone[-1].computed == prompts + said + fork and alone[-1].hit == 0
    assert shared[-1].computed + shared[-1].hit == alone[-1].computed and shared[-1].computed < alone[-1].computed
    assert len(shared) == len(alone)
    for one, other in zip(shared, alone, strict=True):
        assert {table.name: table.words for table in one.tables} == {table.name: table.words for table in other.tables}


def test_blocks_of_four_have_a_copy_a_hit_of_a_conversation_and_an_eviction():
    moments = moments_of(4)
    (copied,) = [block for moment in moments for block in moment.blocks if block.copied_from is not None]
    assert (copied.id, copied.copied_from, copied.owners) == (7, 4, ("A",))
    comes = next(moment for moment in moments if moment.head == "C comes in.")
    assert comes.tables[0].hit == 20 and comes.tables[0].blocks[:5] == (1, 2, 3, 7, 8)
    first = next(moment for moment in moments if moment.evictions)
    assert [block.id for block in first.blocks if block.evicted] == [6] and "Block 6 was cached" in first.tail
    again = next(moment for moment in moments if moment.head == "E comes in.")
    assert again.tables[-1].hit == 12
    assert moments[-1].count("used") == 0


def test_a_cached_block_is_free_and_would_be_found():
    for moment in moments_of(4):
        for block in moment.blocks:
            assert not (block.cached and block.owners) and (block.words == ()) == (block.state == "free")


@pytest.mark.parametrize(("size", "sharing"), SETTINGS)
def test_texts_can_be_read(size, sharing, assert_legible):
    moments = moments_of(size, sharing)
    for moment in [moments[most_telling(moments)], *random.Random(3).sample(moments, 4)]:
        assert_legible(draw(moment).markup())


@pytest.mark.parametrize(("size", "sharing"), SETTINGS)
def test_what_happens_fits_into_its_line_in_every_frame(size, sharing, assert_legible):
    for moment in moments_of(size, sharing):
        svg = draw(moment)
        texts = ElementTree.fromstring(svg.markup()).findall("{http://www.w3.org/2000/svg}text")[-2:]
        only = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {svg.width} {svg.height}">'
        assert_legible(only + "".join(ElementTree.tostring(text, encoding="unicode") for text in texts) + "</svg>")


def test_the_picture_and_the_caption_say_the_same(words):
    shown = stepper()
    shown.go(4)
    said = words(shown.svg())
    assert "A would write into block 4, which is shared: it is copied first, to block 7." in said
    assert "22 tokens computed, 22 found instead" in said and "1 block copied, 0 evicted" in said
    caption = describe(shown.frame)
    assert "A has 15 tokens in blocks 1, 2, 3, 7" in caption and "block 1 × 3" in caption
    assert "In use 7, free but cached 0, free 9; 22 tokens were computed, 22 found." in caption


def test_controls_keep_the_place_and_play_the_pool_again():
    shown = stepper()
    shown.go(13)
    shown.set(block_size=8, sharing=False)
    assert shown.index == 13 and shown.frame.head == "C comes in." and shown.frame.hit == 0
    assert "All of its 26 tokens are computed." in shown.svg()
    assert len(shown.widget.children[1].children) == 2


def test_the_static_frame_is_that_of_the_copy():
    assert "it is copied first" in stepper().static_html()
    assert most_telling(moments_of(2)) == max(n for n, each in enumerate(moments_of(2)) if len(each.tables) == 3)


def test_it_plays_the_readers_own_pool():
    made = []

    class Own(BlockPool):
        def __init__(self, num_blocks, block_size):
            super().__init__(num_blocks, block_size)
            made.append((num_blocks, block_size))
            self._blank.reverse()

    shown = stepper(Own, block_size=2)
    assert made == [(33, 2)]
    assert shown.frames[1].tables[0].blocks == tuple(range(32, 25, -1))


def test_a_block_size_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="block_size must be one of 2, 4, 8"):
        stepper(block_size=16)


def test_something_happens_in_every_step():
    for size, sharing in SETTINGS:
        for one, other in pairwise(moments_of(size, sharing)):
            assert one.tables != other.tables


def test_a_frame_costs_a_millisecond_and_not_a_second(record_property):
    times = []
    for moment in moments_of(2) * 5:
        start = time.perf_counter()
        draw(moment).markup()
        times.append(time.perf_counter() - start)
    record_property("median_ms", 1e3 * statistics.median(times))  # the bound is for a busy machine
    assert statistics.median(times) < 0.02
