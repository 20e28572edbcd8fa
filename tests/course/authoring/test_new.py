"""`llmsys new`: the files of a lesson, which build, lint, self-test and ruff accept as they are; what it refuses."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from llmsys.course import manifest
from llmsys.course.authoring.new import TEMPLATES, NewLessonError, enter, new_lesson, places
from tests.course.conftest import MANIFEST, SOURCE

ROOT = Path(__file__).parents[3]
PLANNED = """
# Planned, one after another.

[[planned]]
number = "91"
title = "A \\"planned\\" lesson"
part = "Plans"

[[planned]]
number = "92"
title = "Another"
part = "Plans"
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout of the tiny lesson alone, with two planned ones behind it."""
    (tmp_path / "llmsys/course").mkdir(parents=True)
    (tmp_path / "llmsys/course/lessons.toml").write_text(MANIFEST + PLANNED, encoding="utf-8")
    (tmp_path / "solutions").mkdir()
    (tmp_path / "solutions/90_tiny.py").write_text(SOURCE, encoding="utf-8")
    return tmp_path


def entries(checkout):
    return tomllib.loads((checkout / "llmsys/course/lessons.toml").read_text(encoding="utf-8"))


def test_every_template_is_laid_in_the_lessons_four_places(checkout):
    written = new_lesson("7", "kv_cache", root=checkout)
    assert all(path.is_file() for path in written) and len(written) == len(list(TEMPLATES.iterdir()))
    names = [path.relative_to(checkout).as_posix() for path in written]
    assert names == [
        "solutions/07_kv_cache.py",
        "llmsys/lessons/lesson_07_kv_cache/__init__.py",
        "llmsys/lessons/lesson_07_kv_cache/checks.py",
        "llmsys/lessons/lesson_07_kv_cache/mistakes.py",
        "llmsys/viz/kv_cache/__init__.py",
        "llmsys/viz/kv_cache/overview.py",
        "llmsys/viz/kv_cache/stepper.py",
        "tests/lessons/test_07_kv_cache.py",
        "llmsys/course/lessons.toml",
    ]
    for place in places("07", "kv_cache", checkout):
        assert place in written or any(place in path.parents for path in written)
    for path in written[:-1]:
        text = path.read_text(encoding="utf-8")
        assert "{{" not in text and "07" in text


def test_the_manifest_keeps_its_text_and_its_order(checkout):
    before = (checkout / "llmsys/course/lessons.toml").read_text(encoding="utf-8")
    new_lesson("07", "kv_cache", root=checkout)
    new_lesson("93", "last", root=checkout)
    lessons = manifest.read_manifest(checkout / "llmsys/course/lessons.toml")
    assert [each.name for each in lessons] == ["07_kv_cache", "90_tiny", "93_last"]
    assert [each["number"] for each in entries(checkout)["planned"]] == ["91", "92"]
    after = (checkout / "llmsys/course/lessons.toml").read_text(encoding="utf-8")
    tiny, plans = before.split("# Planned", 1)
    assert tiny.strip() in after and after.endswith("# Planned" + plans)


def test_a_planned_lesson_gives_its_title_and_its_part_and_is_no_longer_planned(checkout):
    new_lesson("91", "what_was_planned", root=checkout)
    lesson = manifest.read_manifest(checkout / "llmsys/course/lessons.toml")[-1]
    assert (lesson.name, lesson.title, lesson.part) == ("91_what_was_planned", 'A "planned" lesson', "Plans")
    assert [each["number"] for each in entries(checkout)["planned"]] == ["92"]
    assert "# Planned, one after another.\n\n[[planned]]" in (checkout / "llmsys/course/lessons.toml").read_text()


@pytest.mark.parametrize(
    ("number", "end"),
    [
        ("07", "**Next:** lesson 90, A tiny lesson."),
        ("91", "**Next:** lesson 92, Another, which is not built yet."),
        ("93", "**Next:** *what the reader will want to know now.*"),
    ],
)
def test_it_ends_with_the_lesson_that_comes_next_as_the_lint_wants_it(checkout, number, end):
    new_lesson(number, "kv_cache", root=checkout)
    assert (checkout / f"solutions/{number}_kv_cache.py").read_text(encoding="utf-8").endswith(f"# {end}\n")


def test_a_planned_lesson_that_comes_before_the_next_one_that_is_built_is_the_next(checkout):
    new_lesson("95", "built_out_of_order", root=checkout)
    new_lesson("91", "what_was_planned", root=checkout)
    text = (checkout / "solutions/91_what_was_planned.py").read_text(encoding="utf-8")
    assert text.endswith("# **Next:** lesson 92, Another, which is not built yet.\n")


@pytest.mark.parametrize(
    "title, expected", [(None, "Kv cache"), ("The KV cache", "The KV cache"), ('"Ω" \\ 2', '"Ω" \\ 2')]
)
def test_the_title_is_the_given_one_or_made_of_the_slug(checkout, title, expected):
    new_lesson("93", "kv_cache", title=title, root=checkout)
    assert manifest.read_manifest(checkout / "llmsys/course/lessons.toml")[-1].title == expected
    assert f"# # 93 · {expected}\n" in (checkout / "solutions/93_kv_cache.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "number, slug, title, says",
    [
        ("90", "kv_cache", None, "there is a lesson 90: A tiny lesson"),
        ("07", "tiny", None, "there is a lesson tiny: 90"),
        ("7a", "kv_cache", None, "a lesson's number is two digits, like 07; got '7a'"),
        ("100", "kv_cache", None, "two digits"),
        ("²²", "kv_cache", None, "two digits"),
        ("07", "kv-cache", None, "got 'kv-cache'"),
        ("07", "KV", None, "got 'KV'"),
        ("07", "../x", None, "got '../x'"),
        ("07", "lambda", None, "got 'lambda'"),
        ("07", "a" * 41, None, "40 at most"),
        ("07", "kv_cache", " ", "one line of text"),
        ("07", "kv_cache", "x" * 61, "60 characters at most"),
        ("07", "kv_cache", "two\nlines", "one line of text"),
    ],
)
def test_a_bad_or_taken_name_is_refused_and_nothing_is_written(checkout, number, slug, title, says):
    before = {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()}
    with pytest.raises(NewLessonError, match=says.replace(".", r"\.")):
        new_lesson(number, slug, title=title, root=checkout)
    assert before == {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()}


def test_files_that_are_there_are_never_overwritten(checkout):
    (checkout / "llmsys/viz/kit").mkdir(parents=True)
    with pytest.raises(NewLessonError, match="llmsys/viz/kit is there already"):
        new_lesson("07", "kit", root=checkout)


def test_without_a_checkout_it_says_where_the_sources_are(monkeypatch, tmp_path):
    monkeypatch.setattr(manifest, "HERE", tmp_path / "site-packages/llmsys/course")
    with pytest.raises(FileNotFoundError, match="clone the repository"):
        new_lesson("07", "kv_cache")


def test_an_entry_into_an_empty_manifest_is_the_first():
    entry = '[[lesson]]\nnumber = "07"'
    assert enter("# The manifest.\n\n", "07", entry) == f"# The manifest.\n\n{entry}\n"


COMMANDS = """
import sys
import pytest
from typer.testing import CliRunner
from llmsys.course import cli
for arguments in (
    ["new", "07", "made_up_for_a_test"],
    ["check", "--self-test", "07"],
    ["build", "07"],
    ["lint", "07"],
    ["build", "--check", "07"],
):
    done = CliRunner().invoke(cli.app, arguments)
    print(*arguments, done.exit_code, done.output)
    if done.exit_code:
        sys.exit(1)
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "tests/lessons"]))
"""


def test_a_new_lesson_passes_self_test_build_lint_and_its_own_tests_as_it_is(tmp_path):
    """In a checkout of its own, a copy of this one without the other lessons' notebooks and tests."""
    for folder in ("llmsys", "tests/support"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "_lessons"))
    for file in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    for folder in ("solutions", "lessons"):
        (tmp_path / folder).mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    number = next(f"{n:02}" for n in range(7, 100) if not list((ROOT / "solutions").glob(f"{n:02}_*.py")))

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = run("-c", COMMANDS.replace('"07"', f'"{number}"'))
    assert f"solutions/{number}_made_up_for_a_test.py" in said and f"llmsys build {number}" in said
    assert "0 failed, 0 skipped" in said and "Nothing to mend." in said and " passed" in said
    new = [str(path) for path in tmp_path.rglob("*made_up_for_a_test*") if path.suffix != ".ipynb"]
    run("-m", "ruff", "check", "--config", "pyproject.toml", *new)
