"""Bytes against the query tile: the line is what was predicted, the points what was measured."""

from llmsys.viz.tiled_attention import bytes_by_tile


def test_the_sizes_are_said_and_drawn():
    picture = bytes_by_tile({16: 500, 32: 300}, {16: 510, 32: 290}, naive=900, once=200)
    assert "16 rows 500 bytes, 32 rows 300 bytes" in picture.alt
    predicted, measured, naive, once = picture.figure.axes[0].get_lines()
    assert list(predicted.get_ydata()) == [500, 300] and list(measured.get_ydata()) == [510, 290]
    assert set(naive.get_ydata()) == {900} and set(once.get_ydata()) == {200}
