"""Lesson 08's opening picture: as many slots are filled as there are tokens, and tables are the pool's."""

import sys
from xml.etree import ElementTree

from llmsys.cache.block_pool import BlockPool
from llmsys.viz.paged_kv_cache import overview
from llmsys.viz.paged_kv_cache.overview import BLOCK, MORE, ROW, ROWS, SEQUENCES, deal

SVG = "{http://www.w3.org/2000/svg}"


def slots(picture, colour):
    rects = ElementTree.fromstring(picture.svg).iter(f"{SVG}rect")
    return sum(each.get("class") == colour and each.get("height") == "22" for each in rects)


def test_it_can_be_read(assert_legible):
    assert_legible(overview().svg)


def test_every_token_has_a_slot_above_and_below_and_both_memories_are_as_large():
    picture = overview()
    for tokens, colour in SEQUENCES.values():
        assert slots(picture, colour) == 2 * tokens  # in rows and in blocks
    for tokens, colour in MORE.values():
        assert slots(picture, colour) == tokens
    filled = sum(2 * tokens for tokens, _ in SEQUENCES.values()) + sum(tokens for tokens, _ in MORE.values())
    assert slots(picture, "panel") == 2 * ROWS * ROW - filled


def test_tables_are_the_pools_and_name_every_block_once(words):
    pool, tables = deal()
    assert sorted(id for table in tables.values() for id in table.blocks) == list(range(1, 12))
    assert pool.free_blocks == 1
    said = words(overview())
    for name, table in tables.items():
        assert name + "".join(map(str, table.blocks)) in said
        assert f"{name} has blocks {', '.join(map(str, table.blocks))}" in overview().alt


def test_the_token_that_is_looked_up_is_where_the_formula_says(words):
    _, tables = deal()
    assert tables["B"].blocks[6 // BLOCK] == 7
    assert "Entry 6 // 4 = 1 of its table is block 7, and there it has place 6 % 4 = 2" in words(overview())


def test_it_follows_the_pool(monkeypatch):
    class Backwards(BlockPool):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self._blank.reverse()

    right = overview().svg
    monkeypatch.setattr(sys.modules["llmsys.viz.paged_kv_cache.overview"], "BlockPool", Backwards)
    assert overview().svg != right
