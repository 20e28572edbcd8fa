"""The map of the lessons: each stands once, in its part, as what it is."""

from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from llmsys.course.manifest import lessons, planned
from llmsys.viz.course import lesson_map
from llmsys.viz.course.lesson_map import split

SVG = "{http://www.w3.org/2000/svg}"
COURSE = [
    SimpleNamespace(number="07", title="A title", part="Serving"),
    SimpleNamespace(number="08", title="Another", part="Serving"),
]


def test_the_manifests_lessons_are_on_the_map_by_their_titles(words):
    picture = lesson_map(lessons(), planned=planned(), done=["00"])
    for lesson in lessons():
        assert f"{lesson.number} {lesson.title}" in picture.alt
    assert "Done: 00." in picture.alt and "✓" in words(picture)
    assert "26 lessons in four parts: Attention (lessons 00 to 06), Serving (lessons 07 to 13)" in picture.alt
    for each in (*lessons(), *planned()):
        assert each.title.split()[-1] in words(picture)


def test_every_lesson_stands_once_below_its_part(assert_legible):
    svg = lesson_map(lessons(), planned=planned(), done=["00", "01"]).svg
    assert_legible(svg)
    found = {text.text: text for text in ElementTree.fromstring(svg).iter(f"{SVG}text") if "bold" in text.get("class")}
    columns = ("I  Attention", "II  Serving", "III  DeepSeek-V3", "IV  Training at scale")
    for each in (*lessons(), *planned()):
        x, y = (float(found[each.number].get(axis)) for axis in "xy")
        part = "Attention" if each.part == "Start" else each.part
        heading = next(float(found[column].get("x")) for column in columns if column.endswith(part))
        assert abs(x - heading) < 10 and y > 40


def test_what_is_planned_looks_different_from_what_is_there(words):
    plan, one = lesson_map(planned=COURSE), lesson_map(COURSE[:1], planned=COURSE[1:])
    assert "Ready" not in plan.alt and "Ready: 07 A title." in one.alt
    assert "being written" in words(one) and "being written" not in words(plan)


def test_without_planned_lessons_it_is_the_map_of_those_that_are_there(assert_legible):
    picture = lesson_map(lessons())  # as notebooks of before call it
    assert_legible(picture.svg)
    assert f"{len(lessons())} lessons in " in picture.alt and "Attention (lessons 00 to 06)" in picture.alt
    assert f"to {lessons()[-1].number})" in picture.alt and "being written" not in picture.alt


def test_a_map_of_no_lessons_is_refused():
    with pytest.raises(ValueError, match=r"give lesson_map the manifest's lessons\(\) and planned\(\)"):
        lesson_map()


def test_titles_are_split_evenly():
    assert split("Recomputation", 22) == ("Recomputation", "")
    assert split("Tensor and sequence parallelism", 22) == ("Tensor and sequence", "parallelism")
