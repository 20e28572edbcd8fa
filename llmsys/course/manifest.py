"""The course's table of contents: which lessons there are, and which exercises each one asks for.

`lessons.toml`, beside this file, is the only place where a lesson's number, title, points, minutes and prerequisites
are written down; the build, the checks, the grader and the command line all read them here:

    for lesson in lessons():
        print(lesson.number, lesson.title, [exercise.id for exercise in lesson.exercises])
    exercise("02.merge").points

A lesson goes by its number ("02") and its files by its name ("02_online_softmax"); an exercise goes by its lesson's
number and a word ("02.merge"). Only the standard library is needed, so that `llmsys start` works anywhere.
"""

import difflib
import functools
import importlib.util
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


class UnknownId(KeyError):
    """No lesson or exercise goes by that id. The message lists the nearest ones."""

    def __str__(self) -> str:  # KeyError would show the repr of its message, quotes and all
        return self.args[0]


class ManifestError(ValueError):
    """lessons.toml contradicts itself. The message says where, and what was expected."""


@dataclass(frozen=True)
class Exercise:
    """One thing the learner writes. `function` is the name that the cell defines, `requires` the exercises to have
    done before, `kernel` says that the answer is a Triton kernel. An `optional` one is beyond what is asked for: it has
    no points, and no grade depends on it. One with `processes` asks for processes: its answer may start some while it
    is graded, and their processor time counts."""

    id: str
    function: str
    points: int
    minutes: int
    summary: str
    lesson: str
    requires: tuple[str, ...] = ()
    kernel: bool = False
    optional: bool = False
    processes: bool = False

    @property
    def label(self) -> str:
        """The id, as people read it: "02.merge", or "20.fold (optional)"."""
        return f"{self.id} (optional)" if self.optional else self.id

    @property
    def cell_id(self) -> str:
        """The id of the notebook cell that holds the answer ("02-merge"); its check's is `check_cell_id`."""
        return self.id.replace(".", "-")

    @property
    def check_cell_id(self) -> str:
        return f"{self.cell_id}-check"


@dataclass(frozen=True)
class Lesson:
    """One notebook. `part` is the part of the course it belongs to, `requires` what it needs of the machine."""

    number: str
    slug: str
    title: str
    minutes: int
    part: str
    summary: str
    requires: tuple[str, ...] = ()
    exercises: tuple[Exercise, ...] = ()

    @property
    def name(self) -> str:
        """What its files are called: "02_online_softmax"."""
        return f"{self.number}_{self.slug}"

    @property
    def notebook(self) -> str:
        """The notebook's file name, in lessons/, solutions/ and the learner's workspace alike."""
        return f"{self.name}.ipynb"

    @property
    def package(self) -> str:
        """Where its checks and mistakes are: "llmsys.lessons.lesson_02_online_softmax"."""
        return f"llmsys.lessons.lesson_{self.name}"

    @property
    def points(self) -> int:
        return sum(exercise.points for exercise in self.exercises)

    @property
    def required(self) -> tuple[Exercise, ...]:
        """The exercises that count, in order: all but the optional ones."""
        return tuple(exercise for exercise in self.exercises if not exercise.optional)

    def exercise(self, id: str) -> Exercise:
        """The lesson's exercise of that id, "02.merge" or just "merge". Raises UnknownId."""
        wanted = id if "." in id else f"{self.number}.{id}"
        for exercise in self.exercises:
            if exercise.id == wanted:
                return exercise
        raise _unknown("exercise", id, [exercise.id for exercise in self.exercises])


@dataclass(frozen=True)
class Planned:
    """A lesson that is not there yet: its number, its title, and the part of the course it will belong to."""

    number: str
    title: str
    part: str


def lessons() -> tuple[Lesson, ...]:
    """All lessons, in course order."""
    return read_manifest(HERE / "lessons.toml")


def planned() -> tuple[Planned, ...]:
    """The lessons that are planned and not yet built, in course order."""
    return read_planned(HERE / "lessons.toml")


def lesson(number: str) -> Lesson:
    """The lesson of that number ("02", "2"), slug or name. Raises UnknownId, naming the nearest."""
    wanted = str(number).strip().removesuffix(".ipynb")
    for each in lessons():
        if each.number == wanted.zfill(2) or wanted in (each.slug, each.name):
            return each
    raise _unknown("lesson", wanted, [each.number for each in lessons()] + [each.name for each in lessons()])


def exercise(id: str) -> Exercise:
    """The exercise of that id, "02.merge". Raises UnknownId, naming the nearest."""
    for each in lessons():
        for candidate in each.exercises:
            if candidate.id == id:
                return candidate
    raise _unknown("exercise", id, [exercise.id for each in lessons() for exercise in each.exercises])


def label(id: str) -> str:
    """An exercise's id as people read it: with "(optional)" where it is. An id of no exercise stays as it is."""
    known = (exercise for each in lessons() for exercise in each.exercises)
    return next((exercise.label for exercise in known if exercise.id == id), id)


def load_content(number: str, module: str) -> None:
    """Import a module of a lesson's own, "checks" or "mistakes", which registers what it has. Nothing happens where
    there is no such lesson, or where it has no such module."""
    for each in lessons():
        if each.number == number and importlib.util.find_spec(each.package) is not None:
            if importlib.util.find_spec(f"{each.package}.{module}") is not None:
                importlib.import_module(f"{each.package}.{module}")


def lessons_dir() -> Path:
    """Where the pristine lessons are: inside the package in a wheel, lessons/ in a checkout."""
    packaged = HERE / "_lessons"
    return packaged if packaged.is_dir() else HERE.parents[1] / "lessons"


def solutions_dir() -> Path:
    """Where the lessons' sources and executed solutions are: solutions/ in a checkout. A wheel has none."""
    directory = HERE.parents[1] / "solutions"
    if not directory.is_dir():
        raise FileNotFoundError(
            "the solutions are not part of the installed package: clone the repository and run this there, "
            "or read them on its web page, under solutions/"
        )
    return directory


@functools.cache
def read_manifest(path: Path) -> tuple[Lesson, ...]:
    """The lessons of a manifest file. Raises ManifestError where an entry is incomplete, misspelt or contradictory."""
    table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    found = tuple(_lesson(entry) for entry in table.get("lesson", []))
    numbers = [each.number for each in found]
    if numbers != sorted(set(numbers)):
        raise ManifestError(f"{path}: lesson numbers must be unique and rise, got {', '.join(numbers)}")
    known = {exercise.id: exercise for each in found for exercise in each.exercises}
    for exercise in known.values():
        for needed in sorted(exercise.requires):
            if needed not in known:
                raise ManifestError(f"exercise {exercise.id}: it requires {needed!r}, which is no exercise")
            if known[needed].optional and not exercise.optional:
                raise ManifestError(f"exercise {exercise.id}: it requires {needed!r}, which is optional")
    return found


@functools.cache
def read_planned(path: Path) -> tuple[Planned, ...]:
    """The planned lessons of a manifest file. Raises ManifestError where an entry is incomplete or misspelt, or has the
    number of another one or of a lesson that is built."""
    table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    found = tuple(
        _make(Planned, entry, f"planned lesson {entry.get('number', '(no number)')}")
        for entry in table.get("planned", [])
    )
    numbers = [each.number for each in found]
    if numbers != sorted(set(numbers)):
        raise ManifestError(f"{path}: the numbers of planned lessons must be unique and rise, got {', '.join(numbers)}")
    built = {entry.get("number") for entry in table.get("lesson", [])}
    for each in found:
        if not (len(each.number) == 2 and each.number.isdigit()):
            raise ManifestError(f'planned lesson {each.number}: its number is two digits in quotes, like "07"')
        if each.number in built:
            raise ManifestError(f"planned lesson {each.number}: that lesson is built; remove the planned entry")
    return found


def _lesson(entry: dict) -> Lesson:
    where = f"lesson {entry.get('number', '(no number)')}"
    exercises = tuple(_exercise(each, entry.get("number", "")) for each in entry.get("exercise", []))
    ids = [exercise.id for exercise in exercises]
    if len(ids) != len(set(ids)):
        raise ManifestError(f"{where}: exercise ids must be unique, got {', '.join(ids)}")
    fields = entry | {"exercises": exercises, "requires": tuple(entry.get("requires", ()))}
    fields.pop("exercise", None)
    result = _make(Lesson, fields, where)
    if not (len(result.number) == 2 and result.number.isdigit()):
        raise ManifestError(f'{where}: a lesson\'s number is two digits in quotes, like "02"')
    return result


def _exercise(entry: dict, number: str) -> Exercise:
    where = f"exercise {entry.get('id', '(no id)')}"
    fields = entry | {"lesson": number, "requires": tuple(entry.get("requires", ()))}
    if entry.get("optional") is True:
        fields.setdefault("points", 0)
    result = _make(Exercise, fields, where)
    if not isinstance(result.optional, bool):
        raise ManifestError(f"{where}: optional must be true or false, got {result.optional!r}")
    if not isinstance(result.processes, bool):
        raise ManifestError(f"{where}: processes must be true or false, got {result.processes!r}")
    if not result.id.startswith(f"{number}.") or not result.id.removeprefix(f"{number}.").isidentifier():
        raise ManifestError(f'{where}: an exercise\'s id is its lesson\'s number and a word, like "{number}.merge"')
    if not result.function.isidentifier():
        raise ManifestError(f"{where}: function must be a Python name, got {result.function!r}")
    if result.optional and result.points != 0:
        raise ManifestError(f"{where}: an optional exercise has no points, got {result.points}: leave points out")
    if not result.optional and result.points < 1:
        remedy = "one without points is marked optional = true"
        raise ManifestError(f"{where}: points must be at least 1, got {result.points}; {remedy}")
    return result


def _make(kind: type, fields: dict, where: str):
    try:
        return kind(**fields)
    except TypeError as error:  # a missing or a misspelt key, which Python's own message names
        raise ManifestError(f"{where}: {str(error).partition(' ')[2]}") from None


def _unknown(kind: str, wanted: str, known: Iterable[str]) -> UnknownId:
    known = list(known)
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4)
    if not near:  # a bare word, "merge", is nearest to the ids that end in it
        near = [each for each in known if wanted and wanted in each][:3]
    remedy = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known) or 'none'}"
    return UnknownId(f"no {kind} {wanted!r}: {remedy}")
