"""The host tier's benchmark: its quick form, on this machine."""

import pytest

from llmsys.bench.host_cache import Sizes, measure, sizes, table
from llmsys.bench.record import load


@pytest.fixture(scope="module")
def quick():
    return measure(quick=True)


def test_a_prefix_is_copied_and_computed_and_the_rule_says_what_it_makes_of_both(quick):
    rows = [row for row in quick.rows if row["sweep"] == "trade"]
    assert [row["tokens"] for row in rows] == list(sizes(True).prefixes)
    assert all(row["back_ms"] > 0 for row in rows) and rows[-1]["again_ms"] > 0
    for row in rows:
        if "comes_back" in row:
            assert row["comes_back"] == (row["back_predicted_ms"] < row["again_predicted_ms"])


def test_with_main_memory_behind_it_an_engine_computes_less_of_the_same_workload(quick):
    without, beside = (row for row in quick.rows if row["sweep"] == "served")
    assert without["returned_tokens"] == 0 < beside["returned_tokens"]
    spared = beside["hit_tokens"] - without["hit_tokens"]
    assert beside["computed_tokens"] == without["computed_tokens"] - spared < without["computed_tokens"]


def test_a_record_is_kept_and_shown(quick, tmp_path):
    assert load(quick.save(tmp_path)).rows == quick.rows
    assert table(quick).renderables[0].row_count == 3 and isinstance(sizes(True), Sizes)
