"""The benchmark of chunked prefill: what it counts, and that who is wrong is not timed."""

import pytest
import torch

from llmsys.attention.paged import paged_attention_reference
from llmsys.bench.paged_prefill import DENSE, Shape, _compare, shapes, table
from llmsys.bench.record import new_record

SMALL = Shape(2, 6, 2, 16, 4, 5, 21)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the kernels' own tests and a run say more")


def test_operations_are_those_of_the_keys_that_each_query_sees():
    seen = sum(key <= query + 21 - 5 for query in range(5) for key in range(21))
    assert SMALL.flops == 2 * 6 * seen * (2 * 16 + 2 * 16)
    rows = _compare(SMALL, {"ours": paged_attention_reference}, {}, repeats=1)
    by_name = {row["name"]: row for row in rows}
    assert set(by_name) == {"ours", DENSE} and by_name[DENSE]["of_dense"] == 1
    assert by_name["ours"]["of_dense"] == pytest.approx(by_name[DENSE]["us"] / by_name["ours"]["us"], rel=0.01)
    assert [str(column.header) for column in table(new_record("paged_prefill", rows, {})).columns][2] == "ours"


def test_a_kernel_that_is_wrong_is_named_and_not_timed():
    missing = {}
    kernels = {"wrong": lambda *args, **step: paged_attention_reference(*args, **step) * 1.01}
    assert {row["name"] for row in _compare(SMALL, kernels, missing, repeats=1)} == {DENSE}
    assert "is off by" in missing[f"wrong, {SMALL.name}, page 4"]


def test_whole_prompts_and_chunks_are_measured_for_both_models_and_pages():
    here = shapes(True, False)
    for page in (16, 64):
        for heads in ((32, 8, 128), (9, 3, 64)):
            mine = [s for s in here if (s.heads, s.kv_heads, s.head_size, s.page) == (*heads, page)]
            assert any(s.chunk == s.length for s in mine) and any(s.batch > 1 for s in mine) and len(mine) >= 4
    assert len(shapes(True, True)) < 5 and len(shapes(False, True)) == 1
