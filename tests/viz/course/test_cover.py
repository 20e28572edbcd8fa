"""The README's picture: it names the lessons that are there, and its pipeline is a schedule."""

from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from llmsys.viz.course import cover
from llmsys.viz.course.cover import one_f_one_b

SVG = "{http://www.w3.org/2000/svg}"
CHIP = "middle small bold on"


COURSE = [
    SimpleNamespace(number=f"{number:02}", title=f"Title {number}", part=part)
    for number, part in enumerate(("Start", "One", "One", "Two", "Three", "Four", "Four"))
]


def test_lessons_that_can_be_opened_are_named_and_filled(words):
    picture = cover(COURSE[:3], COURSE[3:])
    assert picture.alt.endswith("Ready to open: 00 Title 0, 01 Title 1, 02 Title 2.")
    assert "One, one kernel; Two, one GPU; Three, one model; Four, 2,048 GPUs" in picture.alt
    assert "00 Title 0 · 01 Title 1 · 02 Title 2" in words(picture)
    filled = [text for text in ElementTree.fromstring(picture.svg).iter(f"{SVG}text") if text.get("class") == CHIP]
    assert [text.text for text in filled] == ["00", "01", "02"]
    assert cover([], COURSE).alt.endswith("Ready to open: none yet.")


def test_lessons_of_fewer_parts_than_are_drawn_are_refused():
    with pytest.raises(ValueError, match="must be those of 4 parts together, got One"):
        cover(COURSE[:3])


@pytest.mark.parametrize(("ranks", "micro"), [(1, 1), (2, 5), (4, 4), (8, 8), (5, 2)])
def test_the_pipeline_in_the_picture_is_a_1f1b_schedule(ranks, micro):
    actions = one_f_one_b(ranks, micro)
    when = {(kind, rank, batch): (start, end) for kind, rank, batch, start, end in actions}
    assert len(when) == len(actions) == 2 * ranks * micro
    for (kind, rank, batch), (start, _) in when.items():
        if kind == "F" and rank:
            assert start >= when["F", rank - 1, batch][1]
        if kind == "B":
            assert start >= when["B", rank + 1, batch][1] if rank + 1 < ranks else start >= when["F", rank, batch][1]
    for rank in range(ranks):
        mine = sorted((start, end) for (_, r, _), (start, end) in when.items() if r == rank)
        assert all(end <= start for (_, end), (start, _) in zip(mine, mine[1:], strict=False))
        alive = [
            sum(when["F", rank, b][1] <= t < when["B", rank, b][1] for b in range(micro)) for t in range(3 * ranks)
        ]
        assert max(alive) <= ranks - rank  # what 1F1B is for: few activations are alive at once
    if micro >= ranks:
        assert max(end for *_, end in actions) == 3 * (micro + ranks - 1)  # the ideal, and ranks − 1 in the bubble
