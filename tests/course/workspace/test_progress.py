"""Progress: nothing is lost, whoever writes at the same time and whatever the file holds."""

import json
import multiprocessing
import os

import pytest

from llmsys.course.workspace import progress


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A workspace, from a folder deep inside of it."""
    (tmp_path / ".llmsys").mkdir()
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.delenv("LLMSYS_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path / "a" / "b")
    return tmp_path


def file(work):
    return work / ".llmsys" / "progress.json"


def test_attempts_hints_and_passes_are_kept(work):
    assert progress.attempt("02.merge", "aa", False).failed == ["aa"]
    assert progress.attempt("02.merge", "aa", False).failed == ["aa"]  # the same answer again
    assert progress.attempt("02.merge", "bb", False, nudge="Look at m.").hints == 0  # a wrong answer shows none
    assert progress.load().exercises["02.merge"].nudge == "Look at m."
    assert [progress.next_hint("02.merge", 3) for _ in range(4)] == [1, 2, 3, 3]
    assert progress.passed(work) == set()
    record = progress.attempt("02.merge", "cc", True)
    assert (record.attempts, record.failed, record.nudge) == (4, ["aa", "bb"], "")
    first = record.passed
    progress.attempt("02.merge", "dd", False)  # breaking it again does not take the pass away
    assert progress.passed() == {"02.merge"} and progress.load().exercises["02.merge"].passed == first
    assert json.loads(file(work).read_text())["version"] == progress.VERSION


def test_a_guess_stays_when_the_cell_is_run_without_one(work):
    progress.prediction("p", 12.5, "ms")
    assert progress.prediction("p", None, "ms").guess == 12.5
    assert progress.prediction("q", None, "B").guess is None
    progress.measurement("p", 20.0)
    assert progress.load().predictions["p"] == progress.PredictionProgress(12.5, "ms", 20.0)


def test_the_best_result_is_the_smallest_and_an_older_file_has_none(work):
    assert [progress.best("bytes", value) for value in (30, 20, 25)] == [30, 20, 20]
    assert progress.load().bests == {"bytes": 20} and progress.load().predictions == {}
    data = json.loads(file(work).read_text())
    del data["bests"]
    file(work).write_text(json.dumps(data))
    assert progress.load().bests == {} and progress.best("bytes", 50) == 50


def test_without_a_workspace_nothing_is_written_and_hints_still_escalate(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "_in_memory", progress.Progress())
    monkeypatch.setenv("LLMSYS_WORKSPACE", "")
    monkeypatch.chdir(tmp_path)
    assert [progress.attempt("x", str(i), False).attempts for i in range(2)] == [1, 2]
    assert [progress.next_hint("x", 3) for _ in range(2)] == [1, 2]
    assert list(tmp_path.iterdir()) == [] and progress.load().exercises["x"].attempts == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 1}',
        '{"version": "1", "exercises": {}, "predictions": {}}',
        '{"version": 1, "exercises": {"a": 3}, "predictions": {}}',
        '{"version": 1, "exercises": {"a": {"attempts": "many"}}, "predictions": {}}',
        "\xff\xfe",
        "<<<<<<< HEAD",
    ],
)
def test_a_file_that_cannot_be_read_is_moved_aside(work, text):
    for number in (1, 2):
        file(work).write_bytes(text.encode("latin-1"))
        with pytest.warns(UserWarning, match=rf"cannot be read: it was kept as progress.broken-{number}.json"):
            progress.attempt("a", "x", False)
        assert file(work).with_name(f"progress.broken-{number}.json").read_bytes() == text.encode("latin-1")
    assert progress.load().exercises["a"].attempts == 1


def test_a_file_of_a_newer_version_is_left_alone(work):
    newer = json.dumps({"version": 99, "exercises": {}, "predictions": {}, "more": 1})
    file(work).write_text(newer)
    with pytest.warns(UserWarning, match="newer llmsys"):
        progress.attempt("a", "x", True)
    with pytest.warns(UserWarning, match="newer llmsys"):
        progress.load()
    assert file(work).read_text() == newer


def test_fields_of_a_later_version_are_ignored(work):
    entry = {"attempts": 2, "hints": 1, "failed": [], "passed": None, "mood": "good"}
    file(work).write_text(json.dumps({"version": 1, "exercises": {"a": entry}, "predictions": {}}))
    assert progress.load().exercises["a"] == progress.ExerciseProgress(None, 2, [], 1, 1)


def test_only_hints_that_were_asked_for_are_counted(work):
    progress.attempt("a", "x", False)
    progress.attempt("a", "y", False)
    assert (progress.load().exercises["a"].hints, progress.load().exercises["a"].asked) == (0, 0)
    assert [progress.next_hint("a", 3) for _ in range(4)] == [1, 2, 3, 3]
    assert progress.load().exercises["a"].asked == 3, "the last hint, shown again, is none that was asked for anew"


@pytest.mark.parametrize(
    ("hints", "failed", "asked"), [(0, [], 0), (2, [], 2), (1, ["x"], 0), (3, ["x", "y"], 1), (1, ["x", "y", "z"], 0)]
)
def test_a_file_of_before_says_how_many_hints_were_asked_for_at_least(work, hints, failed, asked):
    entry = {"attempts": 9, "hints": hints, "failed": failed, "passed": None}
    file(work).write_text(json.dumps({"version": 1, "exercises": {"a": entry}, "predictions": {}}))
    assert progress.load().exercises["a"].asked == asked
    progress.next_hint("a", 9)
    assert progress.load().exercises["a"].asked == asked + 1


def test_a_folder_that_cannot_be_written_to_does_not_stop_the_lesson(work):
    file(work).mkdir()  # (permissions would not stop a root user)
    with pytest.warns(UserWarning, match="could not be recorded"):
        assert progress.attempt("z", "x", True).passed


def _write(folder, name):
    os.environ["LLMSYS_WORKSPACE"] = str(folder)
    for i in range(25):
        progress.attempt("shared", f"{name} {i}", False)
        progress.attempt(name, "x", True)


@pytest.mark.skipif(progress.fcntl is None, reason="no file locks on this platform")
def test_two_notebooks_at_once_lose_nothing(work):
    start = multiprocessing.get_context("fork").Process
    writers = [start(target=_write, args=(work, name)) for name in ("one", "two")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    found = progress.load(work)
    assert found.exercises["shared"].attempts == 50 and len(found.exercises["shared"].failed) == 50
    assert progress.passed(work) == {"one", "two"}
    assert not [path for path in file(work).parent.iterdir() if path.name.startswith(".")]  # no temporary file is left
