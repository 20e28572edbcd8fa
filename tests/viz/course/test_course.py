"""The course's maps agree with its manifest, and the committed picture is the one that the code draws."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from llmsys.course import manifest
from llmsys.viz import course_map, course_picture, tier_picture
from llmsys.viz.course.cover import one_f_one_b
from llmsys.viz.course.lesson_map import COURSE, PARTS, TIERS, split

IMAGE = Path(__file__).resolve().parents[3] / "lessons" / "images" / "course.svg"
NUMBERS = [lesson.number for lesson in manifest.lessons()]


def words(picture):
    return " ".join(ElementTree.fromstring(picture.html()).itertext())


def test_all_lessons_are_on_the_map_in_order():
    assert [number for number, *_ in COURSE] == [f"{n:02}" for n in range(26)]
    assert [part for *_, part in COURSE] == sorted(part for *_, part in COURSE)
    assert {part for *_, part in COURSE} == set(range(len(PARTS)))


def test_the_manifests_lessons_are_lit_by_their_own_titles():
    titles = {number: title for number, title, _ in COURSE}
    for lesson in manifest.lessons():
        assert lesson.title == titles[lesson.number]
    picture = course_map(manifest.lessons(), done=["00"])
    for number in NUMBERS:
        assert f"{number} {titles[number]}" in picture.alt
    assert "Done: 00." in picture.alt and "✓" in words(picture)


def test_what_is_there_looks_different_and_titles_may_be_given():
    plan, one = course_map(), course_map([("07", "A new title")])
    assert "Ready" not in plan.alt and "Ready: 07 A new title." in one.alt
    assert "A new title" in words(one) and "being written" in words(one) and "being written" not in words(plan)


@pytest.mark.parametrize("tier", TIERS, ids="tier {}".format)
def test_the_tier_that_this_machine_is(tier):
    picture = tier_picture(tier)
    name, where, _ = TIERS[tier]
    assert picture.alt.endswith(f"The best on this machine: {name} {where}.")
    assert words(picture).count("not on this machine") == len(TIERS) - 1 - list(TIERS).index(tier)


def test_a_tier_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="'interpreter'.*got 'tpu'"):
        tier_picture("tpu")


def test_the_committed_picture_is_up_to_date(tmp_path):
    now = course_picture(NUMBERS).save(tmp_path / "course.svg").read_text(encoding="utf-8")
    remedy = f"regenerate it: python -m llmsys.viz.course.cover lessons/images/course.svg {' '.join(NUMBERS)}"
    assert IMAGE.read_text(encoding="utf-8") == now, remedy


def test_the_picture_lights_what_is_there():
    assert "Ready to open: 02 Online softmax." in course_picture(["02"]).alt
    assert course_picture([]).alt.endswith("Ready to open: none yet.")


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


def test_titles_are_split_evenly():
    assert split("Recomputation", 22) == ("Recomputation", "")
    assert split("Tensor and sequence parallelism", 22) == ("Tensor and sequence", "parallelism")
