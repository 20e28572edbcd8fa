"""A small lesson, whole in every role, so that the machinery is tested apart from the course's own prose.

Its check is one of its own: the setup cell defines `check`, which shows what llmsys.course.check shows, a truthy or
falsy object with a text and an HTML form.
"""

import dataclasses
import sys
from pathlib import Path

import pytest

from llmsys.course import manifest

MANIFEST = """
[[lesson]]
number = "90"
slug = "tiny"
title = "A tiny lesson"
minutes = 5
part = "Test"
summary = "Doubling."
[[lesson.exercise]]
id = "90.double"
function = "double"
points = 2
minutes = 1
summary = "Double a number."
[[lesson.exercise]]
id = "90.halve"
function = "halve"
points = 3
minutes = 1
summary = "Halve a number."
requires = ["90.double"]
"""

SOURCE = '''# %% [markdown]
# # 90 · A tiny lesson
#
# Doubling, and back. ![A number and its double, side by side](double.svg)

# %% tags=["setup"]
class Result:
    def __init__(self, id, passed):
        self.id, self.passed = id, passed

    def __bool__(self):
        return self.passed

    def __repr__(self):
        return f"{self.id}: {'passed' if self.passed else 'not yet'}"

    def _repr_html_(self):
        return f"<p>{self!r}</p>"


def check(id, function):
    try:
        return Result(id, function(4) == {"90.double": 8, "90.halve": 2}[id])
    except NotImplementedError:
        return Result(id, False)


def predict(id, guess, unit):
    return f"{id}: {guess} {unit}"


def measured(id, value, unit):
    return f"{id}: {value} {unit}"

# %% [markdown]
# ## Predict
#
# $$ y = 2x \\tag{1} $$
#
# By equation (1), what is the double of 2?

# %% tags=["predict"]
predict("90.guess", None, "points")

# %% [markdown]
# ## Exercises (1 minute each)

# %% tags=["exercise"] exercise="90.double"
def double(x):
    """Double x, of shape (...)."""
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION

# %% tags=["check"] exercise="90.double"
check("90.double", double)

# %% tags=["exercise"] exercise="90.halve"
def halve(x):
    """Halve x, of shape (...)."""
    ### BEGIN SOLUTION
    half = x / 2
    return half
    ### END SOLUTION

# %% tags=["check"] exercise="90.halve"
check("90.halve", halve)

# %% [markdown]
# ## Watch

# %% tags=["widget"]
import os

from IPython.display import HTML, display

display(HTML("<svg role='img' aria-label='two bars'></svg>"))
print(os.getcwd())

# %% [markdown]
# ## Measure
#
# Doubling 1.25 gives 2.50, twice as much.

# %% tags=["claim"]
print(f"{2 * 1.25:.2f}", 1.25)

# %% tags=["measure"]
measured("90.guess", 4, "points")

# %% [markdown]
# ## In the engine

# %% tags=["engine"]
print([2 * x for x in (1, 2)])

# %% [markdown]
# ## What production does differently
#
# It shifts.
#
# ## Do you have it?
#
# <details><summary>1. Two?</summary>Four.</details>
# <details><summary>2. Four?</summary>Eight.</details>
# <details><summary>3. Eight?</summary>Sixteen.</details>
'''


@dataclasses.dataclass
class Course:
    """A course of one lesson, in a directory of its own."""

    root: Path
    lesson: manifest.Lesson

    @property
    def solutions(self) -> Path:
        return self.root / "solutions"

    @property
    def lessons(self) -> Path:
        return self.root / "lessons"

    @property
    def source(self) -> Path:
        return self.solutions / f"{self.lesson.name}.py"

    def edit(self, old: str, new: str) -> None:
        text = self.source.read_text(encoding="utf-8")
        assert old in text
        self.source.write_text(text.replace(old, new), encoding="utf-8")


def make_course(root: Path) -> Course:
    root.mkdir(parents=True, exist_ok=True)
    (root / "lessons.toml").write_text(MANIFEST, encoding="utf-8")
    course = Course(root, manifest.read_manifest(root / "lessons.toml")[0])
    course.solutions.mkdir()
    course.lessons.mkdir()
    course.source.write_text(SOURCE, encoding="utf-8")
    return course


@pytest.fixture
def course(tmp_path):
    """A course of one lesson, not built yet."""
    return make_course(tmp_path / "course")


@pytest.fixture(scope="session")
def _built_once(tmp_path_factory):
    """The same, built once with a kernel; a test gets a copy (built_course)."""
    from llmsys.course.authoring import build

    course = make_course(tmp_path_factory.mktemp("built") / "course")
    build.build_lesson(course.lesson, course.solutions, course.lessons)
    return course


@pytest.fixture
def built_course(_built_once, tmp_path, monkeypatch):
    """A built course, which manifest's functions know as the course."""
    import shutil

    root = tmp_path / "course"
    shutil.copytree(_built_once.root, root)
    course = Course(root, manifest.read_manifest(root / "lessons.toml")[0])
    monkeypatch.setattr(manifest, "lessons", lambda: (course.lesson,))
    monkeypatch.setattr(manifest, "lessons_dir", lambda: course.lessons)
    monkeypatch.setattr(manifest, "solutions_dir", lambda: course.solutions)
    return course


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A learner's workspace, empty, in which this process is at work."""
    (tmp_path / ".llmsys").mkdir()
    monkeypatch.setenv("LLMSYS_WORKSPACE", str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name == "mine" or name.startswith("mine.")]:
        del sys.modules[name]
