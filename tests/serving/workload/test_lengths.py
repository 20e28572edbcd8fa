"""Lengths of requests: the tables are the traces', and what is drawn is distributed as they say."""

import csv
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsys.serving import LENGTHS, Lengths, draw_lengths
from llmsys.serving.workload import RANKS, at_rank
from tests.support.traces import trace_path


def trace(name: str) -> tuple[list[int], list[int]]:
    """Prompts' and outputs' lengths, sorted."""
    path = trace_path(name)
    with path.open() as file:
        if path.suffix == ".csv":
            pairs = [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(file)]
        else:
            rows = map(json.loads, file)
            pairs = [(row["input_length"], row["output_length"]) for row in rows]
    prompts, outputs = zip(*pairs, strict=True)
    return sorted(prompts), sorted(outputs)


@pytest.mark.parametrize("name", LENGTHS)
def test_the_tables_are_the_traces(name):
    table = LENGTHS[name]
    of_both = ((table.prompt, table.mean_prompt), (table.output, table.mean_output))
    for lengths, (quantiles, mean) in zip(trace(name), of_both, strict=True):
        n = len(lengths)
        assert n == table.requests and round(sum(lengths) / n, 1) == mean
        assert quantiles == tuple(lengths[max(math.ceil(n * rank / 100) - 1, 0)] for rank in RANKS)


@pytest.mark.parametrize("name", LENGTHS)
def test_what_is_drawn_is_distributed_as_the_table_says(name):
    table, n = LENGTHS[name], 20_000
    for quantiles, drawn in zip(
        (table.prompt, table.output), zip(*draw_lengths(name, n, seed=1), strict=True), strict=True
    ):
        for rank, length in zip(RANKS, quantiles, strict=True):
            below, up_to = sum(each < length for each in drawn) / n, sum(each <= length for each in drawn) / n
            assert below - 0.02 <= rank / 100 <= up_to + 0.02  # five standard deviations of a share are below 0.018
        assert min(drawn) >= quantiles[0] and max(drawn) <= quantiles[-1]


@pytest.mark.parametrize("name", LENGTHS)
def test_the_means_are_as_near_as_the_text_says(name):
    table = LENGTHS[name]
    for quantiles, mean in ((table.prompt, table.mean_prompt), (table.output, table.mean_output)):
        drawn = sum(at_rank(quantiles, 100 * (n + 0.5) / 20_000) for n in range(20_000)) / 20_000
        assert abs(drawn / mean - 1) < (0.175 if quantiles is LENGTHS["azure-code"].output else 0.06)


def test_a_seed_draws_the_same_and_a_larger_count_goes_on():
    few, many = draw_lengths("azure-code", 5, seed=3), draw_lengths("azure-code", 50, seed=3)
    assert many[:5] == few != draw_lengths("azure-code", 5, seed=4)
    assert few[0] == (518, 14)  # on every machine
    assert draw_lengths("azure-code", 0, seed=3) == []


@given(st.lists(st.integers(1, 10**6), min_size=len(RANKS), max_size=len(RANKS)).map(sorted), st.floats(0, 100))
def test_at_a_rank_of_the_table_stands_its_quantile_and_between_two_nothing_beyond_them(quantiles, rank):
    table = tuple(quantiles)
    assert tuple(at_rank(table, each) for each in RANKS) == table
    right = next(n for n, each in enumerate(RANKS) if rank <= each)
    assert table[max(right - 1, 0)] <= at_rank(table, rank) <= table[right]


def test_a_table_of_one_s_own():
    always = Lengths(1, (7,) * len(RANKS), (1,) * len(RANKS), 7.0, 1.0)
    assert draw_lengths(always, 3, seed=0) == [(7, 1)] * 3


def test_what_is_not_there_is_refused_with_what_is():
    with pytest.raises(ValueError, match="trace must be one of azure-code, azure-conversation, mooncake-conversation"):
        draw_lengths("azure", 1, seed=0)
    with pytest.raises(ValueError, match="count must be at least 0 requests, got -1"):
        draw_lengths("azure-code", -1, seed=0)
    with pytest.raises(ValueError, match="rank must be from 0 to 100 percent, got 101"):
        at_rank(LENGTHS["azure-code"].prompt, 101)
