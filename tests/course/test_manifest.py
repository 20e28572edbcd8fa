"""The manifest: ids that lead to one thing each, and errors that name the nearest id or the faulty entry."""

import keyword
import subprocess
import sys
from pathlib import Path

import pytest

from llmsys.course import manifest

LESSON = """
[[lesson]]
number = "07"
slug = "the_cache"
title = "The cache"
minutes = 60
part = "Serving"
summary = "Keys and values, kept."
[[lesson.exercise]]
id = "07.append"
function = "append"
points = 2
minutes = 10
summary = "Append a token."
[[lesson.exercise]]
id = "07.gather"
function = "gather"
points = 3
minutes = 10
summary = "Gather a row."
requires = ["07.append"]
"""


def read(tmp_path, text):
    path = tmp_path / "lessons.toml"
    path.write_text(text, encoding="utf-8")
    return manifest.read_manifest(path)


def test_every_id_of_the_course_leads_back_to_its_entry():
    assert {each.number for each in manifest.lessons()} >= {"00", "02"}
    for lesson in manifest.lessons():
        assert {manifest.lesson(name) for name in (lesson.number, lesson.name, lesson.notebook)} == {lesson}
        assert lesson.exercises and lesson.points == sum(e.points for e in lesson.exercises)
        for exercise in lesson.exercises:
            assert manifest.exercise(exercise.id) == lesson.exercise(exercise.id.partition(".")[2]) == exercise
            assert exercise.lesson == lesson.number and not keyword.iskeyword(exercise.function)
    assert manifest.lesson("2").number == "02"


def test_an_entry_is_read_as_written(tmp_path):
    (lesson,) = read(tmp_path, LESSON)
    assert (lesson.name, lesson.notebook, lesson.points) == ("07_the_cache", "07_the_cache.ipynb", 5)
    append, gather = lesson.exercises
    assert (append.cell_id, append.check_cell_id) == ("07-append", "07-append-check")
    assert gather.requires == ("07.append",) and not gather.kernel


@pytest.mark.parametrize("points", ["", "points = 0\n"])
def test_an_optional_exercise_has_no_points_and_is_not_among_the_required(tmp_path, points):
    (lesson,) = read(tmp_path, LESSON.replace("points = 3\n", f"{points}optional = true\n"))
    append, gather = lesson.exercises
    assert lesson.points == 2 and lesson.required == (append,)
    assert (gather.points, gather.optional, append.optional) == (0, True, False)
    assert (append.label, gather.label) == ("07.append", "07.gather (optional)")


def test_a_label_of_no_exercise_is_the_id_itself():
    assert manifest.label("02.merge") == "02.merge" and manifest.label("nowhere") == "nowhere"


def test_unknown_ids_name_the_nearest():
    with pytest.raises(KeyError, match=r"^no exercise '02.mrge': did you mean 02.merge"):
        manifest.exercise("02.mrge")
    with pytest.raises(KeyError, match=r"did you mean 02.merge"):
        manifest.exercise("merge")
    with pytest.raises(KeyError, match=r"^no lesson 'softmaxx'"):
        manifest.lesson("softmaxx")
    with pytest.raises(KeyError, match=r"there are: 02\."):
        manifest.lesson("02").exercise("zzz")


@pytest.mark.parametrize(
    "edit, message",
    [
        (('points = 2', 'points = 0'), "points must be at least 1, got 0; one without points is marked"),
        (('points = 2', 'points = 2\noptional = true'), "07.append: an optional exercise has no points, got 2: leave"),
        (('points = 2', 'optional = false'), "exercise 07.append: missing 1 required positional argument: 'points'"),
        (('points = 2', 'points = 0\noptional = "yes"'), "optional must be true or false, got 'yes'"),
        (('points = 2', 'optional = true'), "exercise 07.gather: it requires '07.append', which is optional"),
        (('id = "07.append"', 'id = "08.append"'), "exercise 08.append: an exercise's id is its lesson's number"),
        (('id = "07.gather"', 'id = "07.append"'), "lesson 07: exercise ids must be unique"),
        (('requires = ["07.append"]', 'requires = ["07.apend"]'), "exercise 07.gather: it requires '07.apend'"),
        (('function = "append"', 'function = "not one"'), "exercise 07.append: function must be a Python name"),
        (('number = "07"', 'number = "7"'), "lesson 7: a lesson's number is two digits"),
        (('slug = "the_cache"', 'slgu = "the_cache"'), "lesson 07: got an unexpected keyword argument 'slgu'"),
        (('summary = "Append a token."', ""), "exercise 07.append: missing 1 required positional argument: 'summary'"),
    ],
)
def test_a_faulty_entry_is_named(tmp_path, edit, message):
    text = LESSON.replace(*edit)
    if edit[0].startswith("number"):  # the exercises follow, so that the number alone is at fault
        text = text.replace("07.", "7.")
    with pytest.raises(manifest.ManifestError, match=message.replace(".", r"\.")):
        read(tmp_path, text)


def test_lesson_numbers_must_rise(tmp_path):
    with pytest.raises(manifest.ManifestError, match="must be unique and rise, got 07, 07"):
        read(tmp_path, LESSON + LESSON)


def test_the_standard_library_is_enough_for_the_learners_side():
    """`llmsys start`, `update` and `status` run where neither torch nor Jupyter is installed."""
    program = (
        "import sys\n"
        "for name in ('torch', 'triton', 'numpy', 'nbformat', 'jupytext', 'nbgrader', 'nbclient'):\n"
        "    sys.modules[name] = None\n"
        "import llmsys.course.manifest\n"
        "from llmsys.course.workspace import notebook, progress, status, update, workspace\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readmes_table_counts_the_exercises_that_are_required():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for lesson in manifest.lessons():
        row = next(line for line in readme.splitlines() if line.startswith(f"| [{lesson.number} "))
        assert row.rsplit("|", 2)[1].strip() == str(len(lesson.required)), row
