"""Times by batch and by context: lines are the record's rows."""

import pytest

from llmsys.bench.record import Record
from llmsys.viz.multi_head_latent_attention import decode_sizes
from llmsys.viz.multi_head_latent_attention.decode_sizes import times_by


def row(name, us, *, B=128, Hq=16, tokens=1, L=8192, shortest=None, page=64):
    return {
        "name": name, "us": us, "B": B, "Hq": Hq, "tokens": tokens, "shortest": shortest or L, "longest": L,
        "page": page,
    }  # fmt: skip


def record(*more):
    rows = [row(name, us * B / 128, B=B) for B in (1, 128) for name, us in (("copy", 280.0), ("gluon", 300.0))]
    rows += [row("copy", 40.0, L=1024), row("gluon", 50.0, L=1024), row("gluon", 90.0, L=1024, Hq=128)]
    rows += [row("copy", 39.0, L=1024, Hq=128), row("gluon", 7.0, Hq=32), row("gluon", 7.0, tokens=2)]
    rows += [row("gluon", 7.0, page=16), row("gluon", 7.0, shortest=1024), row("naive", 7.0)]
    return Record("mla_decode", "NVIDIA H200", {}, "2026-01-01", [*rows, *more])


def drawn(axes):
    return {line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.get_lines()}


def test_times_are_those_of_one_token_equal_lengths_and_one_page():
    assert times_by(record(), "B", longest=8192) == {
        1: {("copy", 16): 280 / 128, ("gluon", 16): 300 / 128},
        128: {("copy", 16): 280.0, ("gluon", 16): 300.0},
    }


def test_lines_are_the_records_times_and_the_copy_is_the_faster_one():
    left, right = (drawn(axes) for axes in decode_sizes(record()).figure.axes)
    assert left == {"gluon, 16 heads": [(1, 300 / 128), (128, 300.0)], "a copy": [(1, 280 / 128), (128, 280.0)]}
    assert right["gluon, 16 heads"] == [(1024, 50.0), (8192, 300.0)] and right["gluon, 128 heads"] == [(1024, 90.0)]
    assert right["a copy"] == [(1024, 39.0), (8192, 280.0)]


def test_it_says_in_words_what_it_shows():
    alt = decode_sizes(record()).alt
    assert "on H200. 1 × 8,192 tokens: gluon with 16 heads 2.34 µs, a copy 2.19 µs." in alt
    assert "128 × 1,024 tokens: gluon with 16 heads 50 µs, gluon with 128 heads 90 µs, a copy 39 µs." in alt


@pytest.mark.parametrize("sizes", [{"context": 77}, {"batch": 77}])
def test_a_record_of_one_size_is_refused(sizes):
    with pytest.raises(ValueError, match="two batches at least"):
        decode_sizes(record(), **sizes)
