"""The build: the same source gives the same bytes, without traces of the machine; what is stale or broken is said."""

import os
import sys

import nbformat
import pytest
from typer.testing import CliRunner

from llmsys.course import cli
from llmsys.course.authoring import build, execute
from llmsys.course.workspace.notebook import dumps, read_notebook, role


def build_now(course, **options):
    return build.build_lesson(course.lesson, course.solutions, course.lessons, **options)


def both(course):
    return tuple(nbformat.read(where / course.lesson.notebook, 4) for where in (course.solutions, course.lessons))


def test_a_rebuild_gives_the_same_bytes(built_course):
    paths = [where / built_course.lesson.notebook for where in (built_course.solutions, built_course.lessons)]
    before = [path.read_bytes() for path in paths]
    assert build.check() == []
    assert build_now(built_course, execute=False) == paths
    assert [path.read_bytes() for path in paths] == before
    build_now(built_course)
    assert [path.read_bytes() for path in paths] == before
    for path in paths:
        assert dumps(read_notebook(path)) == path.read_text(encoding="utf-8")  # the learner's side writes alike


def test_cells_are_named_after_exercises_and_headings(built_course):
    solution, lesson = both(built_course)
    ids = [cell.id for cell in solution.cells]
    assert ids == [cell.id for cell in lesson.cells]
    assert ids[:5] == ["90-a-tiny-lesson-1", "90-a-tiny-lesson-2", "90-predict-1", "90-predict-2", "90-exercises-1"]
    assert ids[5:9] == ["90-double", "90-double-check", "90-halve", "90-halve-check"]
    assert len(set(ids)) == len(ids) and max(map(len, ids)) <= 52  # `update` adds up to 12 characters


def test_the_lesson_has_stubs_and_the_outputs_of_its_checks_alone(built_course):
    solution, lesson = both(built_course)
    for cell, stub in zip(solution.cells, lesson.cells, strict=True):
        if role(cell) == "exercise":
            assert "BEGIN SOLUTION" in cell.source and "SOLUTION" not in stub.source
            assert stub.source.endswith("    # Your code here\n    raise NotImplementedError")
            assert stub.source.splitlines()[:2] == cell.source.splitlines()[:2]
            assert stub.metadata.nbgrader.solution and not stub.metadata.nbgrader.grade
        elif role(cell) == "check":  # its output is a pass, and nobody has written a line yet
            assert stub.source == build.EXPECTED + cell.source and "not yours" in build.EXPECTED
        else:
            assert cell.source == stub.source
        if cell.cell_type == "code":
            assert isinstance(cell.execution_count, int)
            assert bool(stub.outputs) == bool(stub.execution_count) == (role(cell) == "check")
        if role(cell) == "check":
            assert stub.outputs[0].data == cell.outputs[0].data
            assert "passed" in stub.outputs[0].data["text/plain"]
            assert stub.metadata.nbgrader.points == built_course.lesson.exercise(cell.metadata.exercise).points
            assert "nbval-check-output" in stub.metadata.tags
    claims = [cell for each in (solution, lesson) for cell in each.cells if "claim" in cell.metadata.get("tags", [])]
    assert [cell.metadata.tags[-1] for cell in claims] == ["nbval-check-output", "nbval-ignore-output"]


def test_an_exercise_that_repairs_begins_with_what_is_broken_and_is_still_a_stub(built_course):
    head = '# %% tags=["exercise"] exercise="90.halve"'
    found = '# %%\ndef found(x):\n    """Wrong."""\n    third = x // 3\n    return third  # not half\n\n\n'
    built_course.edit(head, f'{found}{head} begins_with="found"')
    source = build.read_source(built_course.lesson, built_course.solutions)
    lesson = build.learner_form(source, both(built_course)[0])
    (cell,) = (cell for cell in lesson.cells if cell.id == "90-halve")
    assert cell.source.endswith(
        f"    {build.FOUND}\n    raise NotImplementedError\n    third = x // 3\n    return third  # not half"
    )
    namespace: dict = {}
    exec(cell.source, namespace)
    with pytest.raises(NotImplementedError):
        namespace["halve"](4)
    exec(cell.source.replace("    raise NotImplementedError\n", ""), namespace)
    assert namespace["halve"](9) == 3
    built_course.edit('begins_with="found"', 'begins_with="lost"')
    source = build.read_source(built_course.lesson, built_course.solutions)
    with pytest.raises(build.BuildError, match="90-halve begins with the body of lost, and no cell above it defines"):
        build.learner_form(source, both(built_course)[0])


def test_the_metadata_says_what_it_was_built_from(built_course):
    before = [each.metadata for each in both(built_course)]
    assert before[0] == before[1] and before[0].kernelspec.name == "llmsys" and before[0].llmsys.lesson == "90"
    assert "version" not in before[0].language_info and "widgets" not in before[0]
    built_course.edit("It shifts.", "It shifts left.")
    build_now(built_course, execute=False)
    assert both(built_course)[0].metadata.llmsys.version != before[0].llmsys.version


@pytest.mark.parametrize(
    "stale, message",
    [
        (lambda c: c.edit("It shifts.", "It adds."), "the source of cell 90-do-you-have-it-1"),
        (lambda c: c.edit("# ## Watch\n", "# ## Look\n"), "its cells are not those of the source, from cell 90-look-1"),
        (lambda c: c.edit("return 2 * x", "return x + x"), "the source of cell 90-double"),
        (lambda c: (c.lessons / c.lesson.notebook).unlink(), "90_tiny.ipynb is missing from lessons/"),
        (lambda c: rewrite(c.lessons / c.lesson.notebook, "# Your", "# My"), "lessons/90_tiny.ipynb: the source of"),
        (lambda c: rewrite(c.solutions / c.lesson.notebook, ": passed", ": so so"), "lessons/90_tiny.ipynb: its bytes"),
    ],
)
def test_check_says_what_is_stale_and_how_to_mend_it(built_course, stale, message):
    stale(built_course)
    (found,) = build.check("90")
    assert message in found and found.endswith("; run: llmsys build 90")
    done = CliRunner().invoke(cli.app, ["build", "--check"])
    assert done.exit_code == 1 and message in done.output


def rewrite(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_prose_may_be_rebuilt_without_a_kernel_and_code_may_not(built_course):
    built_course.edit("It shifts.", "It shifts, in one cycle.")
    build_now(built_course, execute=False)
    assert build.check() == []
    built_course.edit("return 2 * x", "return x + x")
    with pytest.raises(build.BuildError, match="code cells have changed since it was executed"):
        build_now(built_course, execute=False)


def test_a_built_notebook_names_no_directory_of_this_machine(built_course):
    text = "".join(path.read_text(encoding="utf-8") for path in built_course.root.glob("*/*.ipynb"))
    assert len(text) > 2000
    for directory in (str(built_course.root), os.getcwd(), sys.prefix, "llmsys-build-", "ipykernel_"):
        assert directory not in text
    widget = next(cell for cell in both(built_course)[0].cells if role(cell) == "widget")
    assert widget.outputs[-1].text == "work\n"  # it printed its working directory


def test_outputs_lose_widget_views_and_this_machines_paths_and_nothing_else():
    def settle(**fields):
        return execute._portable(nbformat.v4.new_output(**fields), 7, {"/a/b/work": "work", "/a/b": "."})

    view = {execute.WIDGET_VIEW: {"model_id": "x"}, "text/plain": "Stepper()"}
    assert settle(output_type="display_data", data=view) is None
    kept = settle(output_type="display_data", data=view | {"text/html": "<p>frame</p>"})
    assert set(kept.data) == {"text/plain", "text/html"}
    warning = "/tmp/ipykernel_12/345.py:3: UserWarning: in /a/b/work/x and /a/b/c\n"
    assert settle(output_type="stream", name="stderr", text=warning).text == "cell:3: UserWarning: in work/x and ./c\n"
    picture = "iVBOR/a/b/"  # base64 that happens to look like a path
    assert settle(output_type="display_data", data={"image/png": picture}).data["image/png"] == picture
    assert settle(output_type="execute_result", data={"text/plain": "1"}, execution_count=9).execution_count == 7


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("    half = x / 2\n", "    half = x / 3\n", "90-halve-check: the check rejects the solution:\n90.halve: not"),
        ("    half = x / 2\n", "    half = x / 0\n", "lesson 90, cell 90-halve-check raised ZeroDivisionError"),
    ],
)
def test_a_solution_that_fails_is_not_built(course, old, new, message):
    course.edit(old, new)
    with pytest.raises(build.BuildError, match=message):
        build_now(course)
    assert list(course.lessons.iterdir()) == []


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('exercise="90.halve"\ncheck', 'exercise="90.halv"\ncheck', "no exercise '90.halv': did you mean 90.halve"),
        ('tags=["check"] exercise="90.halve"', 'tags=["check"]', "does not say exercise="),
        ('tags=["check"] exercise="90.halve"', 'tags=["check"] exercise="90.double"', "repeated: 90-double-check"),
    ],
)
def test_a_cell_that_belongs_to_no_exercise_is_named(course, old, new, message):
    course.edit(old, new)
    with pytest.raises(build.BuildError, match=message):
        build.read_source(course.lesson, course.solutions)


def test_an_unclosed_solution_is_named(course):
    course.edit("    return half\n    ### END SOLUTION\n", "    return half\n")
    source = build.read_source(course.lesson, course.solutions)
    with pytest.raises(build.BuildError, match="cell 90-halve: no end solution"):
        build.learner_form(source, source)


def test_the_kernel_is_this_interpreter(course):
    course.edit("print(os.getcwd())", "import sys, llmsys.course.manifest as m; print(sys.executable, m.__file__)")
    executed = execute.execute_notebook(build.read_source(course.lesson, course.solutions))
    widget = next(cell for cell in executed.cells if role(cell) == "widget")
    here = sys.executable.replace(sys.prefix, "python")
    assert widget.outputs[-1].text == f"{here} ./llmsys/course/manifest.py\n"


def test_a_hash_inside_code_is_no_heading():
    text = "# A title\n\n```python\n# a comment\n```\n\n## Second: m and ℓ ##\n"
    assert build.headings(text) == [(1, "A title"), (2, "Second: m and ℓ")]
    assert build.slug("Second: m and 2·naïve!") == "second-m-and-2-naive" and build.slug("→") == "text"
    assert len(build.slug("a very long heading, " * 9)) <= 40


def test_the_courses_own_notebooks_follow_from_their_sources():
    assert build.check() == []
