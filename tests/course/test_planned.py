"""Planned lessons in the manifest: with those that are built they make the course, and no number stands twice."""

import pytest

from llmsys.course.manifest import ManifestError, Planned, lessons, planned, read_planned

LESSON = '[[lesson]]\nnumber = "06"\n'
PLANNED = '[[planned]]\nnumber = "07"\ntitle = "The KV cache"\npart = "Serving"\n'


def read(tmp_path, text):
    path = tmp_path / "lessons.toml"
    path.write_text(text, encoding="utf-8")
    return read_planned(path)


def test_lessons_and_planned_ones_are_numbered_from_00_to_25():
    assert sorted(each.number for each in (*lessons(), *planned())) == [f"{number:02}" for number in range(26)]


def test_an_entry_is_read_as_it_is_written(tmp_path):
    assert read(tmp_path, LESSON + PLANNED) == (Planned("07", "The KV cache", "Serving"),)


def test_where_everything_is_built_nothing_is_planned(tmp_path):
    assert read(tmp_path, LESSON) == ()


@pytest.mark.parametrize(
    "text, message",
    [
        (LESSON.replace("06", "07") + PLANNED, "planned lesson 07: that lesson is built; remove the planned entry"),
        (PLANNED + PLANNED, "must be unique and rise, got 07, 07"),
        (PLANNED.replace("07", "08") + PLANNED, "must be unique and rise, got 08, 07"),
        (PLANNED.replace("07", "7"), 'its number is two digits in quotes, like "07"'),
        (PLANNED.replace("part", "parts"), "planned lesson 07: .*parts"),
        ('[[planned]]\nnumber = "07"\n', "planned lesson 07: .*title"),
    ],
    ids=["a lesson that is built", "a number twice", "falling numbers", "one digit", "a misspelt key", "no title"],
)
def test_a_wrong_entry_is_refused_and_named(tmp_path, text, message):
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, text)
