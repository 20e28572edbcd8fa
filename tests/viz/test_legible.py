"""The checker of pictures itself: it lets a good drawing pass, and finds each fault that it is there for."""

import pytest

from llmsys.viz.kit.svg import Svg


def drawing(*texts, ground="panel"):
    svg = Svg(200, 60, alt="words")
    svg.rect(0, 0, 200, 60, ground)
    for x, y, text, classes in texts:
        svg.text(x, y, text, classes)
    return svg.markup()


def test_a_drawing_without_faults_passes(assert_legible):
    assert_legible(drawing((10, 20, "one", ""), (10, 40, "two", "bold blue")))
    assert_legible(drawing((10, 20, "on a strong colour", "on"), ground="blue"))


@pytest.mark.parametrize(
    "texts, ground, fault",
    [
        ([(180, 20, "leaves the picture", "")], "panel", "leaves the picture"),
        ([(10, 20, "one text", ""), (30, 24, "another", "")], "panel", "'one text', 'another'"),
        ([(10, 20, "faint", "muted")], "rule", "'faint', 'muted', 'rule'"),
        ([(10, 20, "dark on dark", "")], "blue", "'dark on dark', 'ink', 'blue'"),
    ],
    ids=["outside", "on each other", "too faint", "on its own kind of colour"],
)
def test_a_fault_is_found(texts, ground, fault, assert_legible):
    with pytest.raises(AssertionError, match=fault):
        assert_legible(drawing(*texts, ground=ground))
