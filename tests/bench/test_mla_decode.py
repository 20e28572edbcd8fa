"""The benchmark of MLA decode: what it counts, and that who is wrong is not timed."""

import pytest
import torch

from llmsys.bench.mla_decode import (
    COPY,
    EXPANDED,
    NAIVE,
    Cache,
    Shape,
    _compare,
    _definition,
    _peers,
    shapes,
    table,
)
from llmsys.bench.record import new_record

SMALL = Shape(3, 4, 5, 30, page=4)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the kernels' own tests and a run say more")


def test_latents_are_counted_once_and_operations_for_every_row_and_key_it_sees():
    rows = _compare(SMALL, {"ours": _definition}, {}, repeats=1)
    ours = next(row for row in rows if row["name"] == "ours")
    assert {row["name"] for row in rows} == {"ours", COPY}  # lengths differ: there is nothing expanded of that size
    assert ours["bytes"] == sum(SMALL.lengths()) * 576 * 4
    assert ours["tflops"] == pytest.approx(SMALL.flops / ours["us"] / 1e6, rel=0.01)
    assert SMALL.flops == 2 * 4 * sum(SMALL.lengths()) * (576 + 512)
    two = Shape(3, 4, 5, 30, tokens=2)  # the first of two does not see the last key
    assert two.flops == 2 * 4 * sum(2 * n - 1 for n in two.lengths()) * (576 + 512)


def test_forms_without_absorption_stand_beside_where_lengths_are_equal():
    rows = _compare(Shape(2, 3, 9, 9, page=4), {"ours": _definition}, {}, repeats=1)
    assert {row["name"] for row in rows} == {"ours", EXPANDED, NAIVE, COPY}
    shown = table(new_record("mla_decode", rows, {}))
    assert [str(column.header) for column in shown.columns][2] == "ours"
    assert _peers(Shape(1, 128, 10**6, 10**6), Cache(SMALL, SMALL.lengths(), 1)) == {}  # too much


def test_slots_beyond_a_length_are_nan_and_pages_are_nobodys_twice():
    cache = Cache(SMALL, SMALL.lengths(), 2)
    ids = torch.cat([x.flatten() for x in cache.tables])
    assert ids[ids >= 0].unique().numel() == (ids >= 0).sum() == sum(-(-n // 4) for n in cache.lengths) * 2
    assert (~cache.pages.isnan()).all(-1).sum() == sum(cache.lengths) * 2
    assert not cache.decode(_definition, 1).isnan().any()


def test_a_kernel_that_is_wrong_is_named_and_not_timed():
    missing = {}
    kernels = {"wrong": lambda *args, **step: _definition(*args, **step) * 1.01}
    assert {row["name"] for row in _compare(SMALL, kernels, missing, repeats=1)} == {COPY}
    ((name, reason),) = missing.items()
    assert name.startswith("wrong, B 3, 4 heads × 1, L 5–30, page 4") and "is off by" in reason


def test_the_shapes_of_the_targets_are_measured():
    here = {(s.batch, s.heads, s.tokens, s.shortest, s.longest, s.page) for s in shapes(True, False)}
    for heads, tokens in ((16, 1), (32, 1), (128, 1), (128, 2)):
        assert {(128, heads, tokens, L, L, 64) for L in (1024, 4096, 8192)} <= here
        assert (128, heads, tokens, 1024, 32_768, 64) in here
    assert len(shapes(True, True)) < 5 and len(shapes(False, True)) < 3
