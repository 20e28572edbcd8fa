"""The benchmark of paged decode: what it counts, and that who is wrong is not timed."""

import pytest
import torch

from llmsys.attention.paged import paged_attention_reference
from llmsys.bench.paged_decode import COPY, DENSE, Cache, Shape, _compare, shapes, table
from llmsys.bench.record import new_record

SMALL = Shape(3, 6, 2, 16, 4, 5, 30)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the kernels' own tests and a run say more")


def test_bytes_are_those_of_the_keys_and_values_that_are_needed():
    rows = _compare(SMALL, {"ours": paged_attention_reference}, {}, repeats=1)
    assert {row["name"] for row in rows} == {"ours", COPY}  # lengths differ: there is no dense cache of that size
    assert {row["bytes"] for row in rows} == {sum(SMALL.lengths()) * 2 * 16 * 2 * 4}
    equal = _compare(Shape(3, 6, 2, 16, 4, 8, 8), {"ours": paged_attention_reference}, {}, repeats=1)
    by_name = {row["name"]: row for row in equal}
    ours = by_name["ours"]
    assert set(by_name) == {"ours", COPY, DENSE}
    assert ours["of_dense"] == pytest.approx(by_name[DENSE]["us"] / ours["us"], rel=0.01)
    assert [str(column.header) for column in table(new_record("paged_decode", rows + equal, {})).columns][2] == "ours"


def test_slots_beyond_a_length_are_nan_and_pages_are_nobodys_twice():
    cache = Cache(SMALL, SMALL.lengths(), 2)
    ids = torch.cat([x.flatten() for x in cache.tables])
    assert ids[ids >= 0].unique().numel() == (ids >= 0).sum() == sum(-(-n // 4) for n in cache.lengths) * 2
    written = (~cache.key_pages.isnan()).all(-1).all(-1).sum()
    assert written == sum(cache.lengths) * 2


def test_a_kernel_that_is_wrong_is_named_and_not_timed():
    missing = {}
    kernels = {"wrong": lambda *args, **step: paged_attention_reference(*args, **step) * 1.01}
    assert {row["name"] for row in _compare(SMALL, kernels, missing, repeats=1)} == {COPY}
    ((name, reason),) = missing.items()
    assert name.startswith("wrong, B 3, 6/2 heads of 16, L 5–30, page 4") and "is off by" in reason


def test_the_shapes_of_the_targets_are_measured_with_pages_of_16_and_64():
    here = {(s.batch, s.heads, s.kv_heads, s.head_size, s.page, s.shortest, s.longest) for s in shapes(True, False)}
    for page in (16, 64):
        assert {(64, 32, 8, 128, page, L, L) for L in (1024, 8192)} <= here
        assert {(256, 32, 8, 128, page, 64, 4096), (256, 9, 3, 64, page, 64, 4096)} <= here
        assert (128, 9, 3, 64, page, 1024, 1024) in here
    assert len(shapes(True, True)) < 5 and len(shapes(False, True)) < 3
