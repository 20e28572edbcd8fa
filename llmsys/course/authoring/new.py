"""A new lesson: its files, laid where the course looks for them, whole but for what it is about.

    solutions/07_kv_cache.py                 the source: a small lesson in every role, with notes to the author
    llmsys/lessons/lesson_07_kv_cache/       checks.py and mistakes.py of its one exercise
    llmsys/viz/kv_cache/                     overview.py and stepper.py: its pictures
    tests/lessons/test_07_kv_cache.py        its tests
    llmsys/course/lessons.toml               its entry, in the place of the planned one

The templates beside this file are that lesson, about a sum of exponentials. As they are, `llmsys build`, `llmsys lint`
and `llmsys check --self-test` accept them, and so they do after each step of making something else of them. In a
template, {{number}}, {{slug}} and {{title}} stand for the lesson's.
"""

import itertools
import json
import keyword
import re
import tomllib
from pathlib import Path

from llmsys.course import manifest
from llmsys.course.workspace.notebook import write_text

TEMPLATES = Path(__file__).parent / "templates"
MANIFEST = Path("llmsys/course/lessons.toml")
LONGEST_SLUG, LONGEST_TITLE = 40, 60


class NewLessonError(ValueError):
    """No such lesson can be made. The message says why."""


def places(number: str, slug: str, root: Path) -> tuple[Path, Path, Path, Path]:
    """The four places of a lesson in a checkout: its source, its content, its pictures, its tests."""
    name = f"{number}_{slug}"
    return (
        root / "solutions" / f"{name}.py",
        root / "llmsys" / "lessons" / f"lesson_{name}",
        root / "llmsys" / "viz" / slug,
        root / "tests" / "lessons" / f"test_{name}.py",
    )


def new_lesson(number: str, slug: str, *, title: str | None = None, root: Path | None = None) -> list[Path]:
    """Lay the files of a lesson into the checkout at `root` (this one), and enter it into the manifest.

    Returns the files written, the manifest last. The title is that of the manifest's planned lesson, where there is one
    of that number, or else made of the slug. Raises NewLessonError, before anything is written, where the number, the
    slug or the title will not do or is taken, and FileNotFoundError where there is no checkout.
    """
    root = manifest.solutions_dir().parent if root is None else root
    text = (root / MANIFEST).read_text(encoding="utf-8")
    number, table = number.zfill(2), tomllib.loads(text)
    planned = next((each for each in table.get("planned", []) if each["number"] == number), {})
    title = title if title is not None else planned.get("title", slug.replace("_", " ").capitalize())
    _refuse_bad_names(number, slug, title)
    _refuse_taken_names(number, slug, table.get("lesson", []), root)
    values = {
        "number": number,
        "slug": slug,
        "title": title,
        "title_in_quotes": json.dumps(title, ensure_ascii=False),  # a string in TOML, too
        "next": _next_after(number, table),
        "part_in_quotes": json.dumps(planned.get("part", _part_before(number, table)), ensure_ascii=False),
    }
    source, content, pictures, test = places(number, slug, root)
    files = {
        source: "source",
        content / "__init__.py": "content",
        content / "checks.py": "checks",
        content / "mistakes.py": "mistakes",
        pictures / "__init__.py": "viz",
        pictures / "overview.py": "overview",
        pictures / "stepper.py": "stepper",
        test: "test",
    }
    for path, template in files.items():
        write_text(path, fill(template, values))
    write_text(root / MANIFEST, enter(text, number, fill("manifest", values)))
    manifest.read_manifest.cache_clear()
    return [*files, root / MANIFEST]


def fill(template: str, values: dict[str, str]) -> str:
    """A template's text with the values in the places of their names."""
    text = (TEMPLATES / f"{template}.template").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], text)


def enter(text: str, number: str, entry: str) -> str:
    """The manifest's text with an entry for a lesson of that number: after the lessons before it, and instead of a
    planned one. Everything else, comments included, stays as it is."""
    lines = text.splitlines()
    before = [block for block in _blocks(lines) if block[0] == "lesson" and block[1] < number]
    planned = [block for block in _blocks(lines) if block[:2] == ("planned", number)]
    for _, _, start, stop in planned:
        while stop < len(lines) and not lines[stop].strip():
            stop += 1
        del lines[start:stop]  # planned lessons follow the others, so that no place above has changed
    if before:
        at = before[-1][3]
        lines[at:at] = ["", *entry.splitlines()]
    else:
        at = next((start for _, _, start, _ in _blocks(lines)), len(lines))
        lines[at:at] = [*entry.splitlines(), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _blocks(lines: list[str]) -> list[tuple[str, str, int, int]]:
    """The entries of a manifest: (lesson or planned, its number, its first line, the line after its last)."""
    heads = [n for n, line in enumerate(lines) if line.strip() in ("[[lesson]]", "[[planned]]")]
    found = []
    for start, stop in itertools.pairwise([*heads, len(lines)]):
        while not lines[stop - 1].strip() or lines[stop - 1].lstrip().startswith("#"):
            stop -= 1  # what comments stand above the next entry are that one's
        entry = tomllib.loads("\n".join(lines[start:stop]))
        kind = lines[start].strip().strip("[]")
        found.append((kind, entry[kind][0]["number"], start, stop))
    return found


def _next_after(number: str, table: dict) -> str:
    """Where the lesson's end sends the reader: to the next lesson, which may be there or planned only."""
    built, planned = table.get("lesson", []), table.get("planned", [])
    if later := [each for each in (*built, *planned) if each["number"] > number]:
        nearest = min(later, key=lambda each: each["number"])
        missing = "" if nearest in built else ", which is not built yet"
        return f"lesson {nearest['number']}, {nearest['title']}{missing}."
    return "*what the reader will want to know now.*"


def _part_before(number: str, table: dict) -> str:
    """The part of the course that the lesson before belongs to."""
    return next((each["part"] for each in reversed(table.get("lesson", [])) if each["number"] < number), "Start")


def _refuse_bad_names(number: str, slug: str, title: str) -> None:
    if not re.fullmatch(r"[0-9]{2}", number):
        raise NewLessonError(f"a lesson's number is two digits, like 07; got {number!r}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", slug) or keyword.iskeyword(slug) or len(slug) > LONGEST_SLUG:
        raise NewLessonError(
            f"a slug is a Python name of lower-case letters, digits and underscores, {LONGEST_SLUG} at most, like "
            f"kv_cache; got {slug!r}"
        )
    if not title.strip() or not title.isprintable() or len(title) > LONGEST_TITLE:
        raise NewLessonError(f"a title is one line of text, {LONGEST_TITLE} characters at most; got {title!r}")


def _refuse_taken_names(number: str, slug: str, lessons: list[dict], root: Path) -> None:
    for each in lessons:
        if each["number"] == number:
            raise NewLessonError(f"there is a lesson {number}: {each['title']}")
        if each["slug"] == slug:
            raise NewLessonError(f"there is a lesson {slug}: {each['number']}, {each['title']}")
    for path in places(number, slug, root):
        if path.exists():
            raise NewLessonError(f"{path.relative_to(root)} is there already: move it away, or choose another slug")
