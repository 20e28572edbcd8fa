"""The lints: the small lesson has nothing to mend, and each way to spoil it is found, in its cell, with a remedy."""

import dataclasses

import nbformat
import pytest
from typer.testing import CliRunner

from llmsys.course import cli, manifest
from llmsys.course.authoring import build, exercise_rules, lint
from llmsys.course.authoring.alt_texts import pictures
from llmsys.course.authoring.numbers_in_prose import claims, is_cited, is_shown
from llmsys.course.manifest import Planned

LAST = "<details><summary>3. Eight?</summary>Sixteen.</details>\n"  # the last line of the small lesson


def findings(course):
    """The findings of an edited source, with the outputs that its code had before (as if it had been executed)."""
    executed = nbformat.read(course.solutions / course.lesson.notebook, 4)
    source = build.read_source(course.lesson, course.solutions)
    outputs = {cell.id: cell for cell in executed.cells}
    for cell in source.cells:
        if cell.cell_type == "code" and cell.id in outputs:
            cell.outputs, cell.execution_count = outputs[cell.id].outputs, outputs[cell.id].execution_count
    (course.solutions / course.lesson.notebook).write_text(build.writes(source), encoding="utf-8")
    return lint.lint_lesson(course.lesson, course.solutions)


def test_a_whole_lesson_has_nothing_to_mend(built_course):
    assert findings(built_course) == []
    assert CliRunner().invoke(cli.app, ["lint", "90"]).output == "Nothing to mend.\n"


@pytest.mark.parametrize(
    "old, new, cell, message",
    [
        ('# %% tags=["engine"]', "# %%", "(none)", "no cell has the role engine"),
        ("return 2 * x", "return 2 * x * Result", "90-double", "it uses Result of other cells"),
        ("return 2 * x", "return [math.pi for _ in x]", "90-double", "it uses math of other cells"),
        ("def halve(x):", "def half(x):", "90-halve", "defines no function halve"),
        ("Double x, of shape (...).", "Double x.", "90-double", "says no shapes"),
        ("    ### BEGIN SOLUTION\n    return 2 * x", "    return 2 * x", "90-double", "not one solution"),
        (" (1 minute each)", "", "90-double", "the heading above says no minutes"),
        (" (1 minute each)", " (10 minutes)", "90-halve", "the heading above says 10 minutes"),
        ('check("90.double", double)\n', 'check("90.double", double)\ndouble(2)\n', "90-double-check", "does not end"),
        ('check("90.double", double)\n', 'check("90.double", halve)\n', "90-double-check", "does not end in its check"),
        ('# %% tags=["check"] exercise="90.double"', "# %% [markdown]\n# x\n\n# %%", "90-double", "does not follow"),
        ('measured("90.guess", 4, "points")', "4", "90-predict-2", "'90.guess' is predicted and never measured"),
        ('measured("90.guess", 4', 'measured("90.gess", 4', "90-measure-3", "'90.gess' is measured and was not"),
        ('predict("90.guess"', 'predict("91.guess"', "90-predict-2", "'91.guess' is not an id of this lesson's"),
        ("side by side](", "](", "(ok)", None),
        ("![A number and its double, side by side]", "![]", "90-a-tiny-lesson-1", "an image has no alt text"),
        ("![A number and its double, side by side](double.svg)", "", "90-predict-2", "nothing is shown before"),
        ("<summary>3. Eight?</summary>", "", "(end)", "a folded answer without a question"),
        ("# <details><summary>2. Four?</summary>Eight.</details>\n", "", "(end)", "it has 2 folded answers"),
        ("By equation (1)", "By equation (2)", "90-predict-1", "refers to equation (2), which there is not"),
        ("By equation (1)", "by (3)", "90-predict-1", "refers to equation (3)"),
        (r"y = 2x \tag{1}", r"y = 2x \tag{1} $$ $$ x \tag{1}", "90-predict-1", "there are 2 equations (1)"),
        ("gives 2.50", "gives 2.51", "90-measure-1", "nothing shows 2.51"),
        ("It shifts.", "It takes 3 ms.", "90-do-you-have-it-1", "nothing shows 3 ms"),
        ("It shifts.", "It\n# <!-- x --> **shifts**.", "90-do-you-have-it-1", "begins a line, and hides Markdown"),
        ("It shifts.", "It\n# shifts. <!-- source:\n# x -->", "(ok)", None),
        ("What production does", "What others do", "(none)", "no section says what production does"),
        ("# ## Measure\n", "# ## What production does\n", "90-in-the-engine-2", "comes after what production does"),
    ],
)
def test_each_broken_rule_is_found_in_its_cell(built_course, old, new, cell, message):
    built_course.edit(old, new)
    found = findings(built_course)
    if message is None:
        assert found == []
        return
    assert any(each.cell == cell and message in each.message for each in found), "\n".join(map(str, found))
    assert all(each.remedy and each.file == "90_tiny.py" for each in found)
    assert len(found) <= 3


@pytest.fixture
def two_lessons(built_course, monkeypatch):
    """The course, with a lesson 91 after its own."""
    following = dataclasses.replace(built_course.lesson, number="91", slug="next", title="The next lesson")
    monkeypatch.setattr(manifest, "lessons", lambda: (built_course.lesson, following))
    return built_course


@pytest.mark.parametrize(
    ("end", "passes"),
    [
        ("**Next:** lesson 91, what follows.", True),
        ("**Next:** lesson 91, what follows. Lesson 92 comes later.", True),
        ("**Next:** lesson 92. (Lesson 91 is on its way.)", False),
        ("**Next:** lesson 91, which is not built yet.", False),
        ("**Next:** what the reader will want to know.", False),
        ("That was lesson 91.", False),
    ],
)
def test_a_lesson_ends_with_the_next_one_of_the_manifest(two_lessons, end, passes):
    two_lessons.edit(LAST, f"{LAST}#\n# {end}\n")
    found = [(each.cell, each.message) for each in findings(two_lessons)]
    said = "its end does not send the reader on to lesson 91, The next lesson"
    assert found == ([] if passes else [("90-do-you-have-it-1", said)])


def test_where_the_next_lesson_is_planned_it_is_said_to_be_missing(two_lessons, monkeypatch):
    between = Planned("90a", "Between the two", "A part")
    monkeypatch.setattr(manifest, "planned", lambda: (between,))
    two_lessons.edit(LAST, f"{LAST}#\n# **Next:** lesson 91, which is not built yet.\n")
    assert findings(two_lessons) == []


def test_the_last_lesson_promises_nothing_that_is_not_there(built_course):
    built_course.edit(LAST, f"{LAST}#\n# **Next:** lesson 91.\n")
    assert "lesson 91, which there is not" in findings(built_course)[0].message
    built_course.edit("**Next:** lesson 91.", "**Next:** lesson 91, which is not built yet.")
    assert findings(built_course) == []


def test_exercises_in_another_order_than_the_manifests_are_found(built_course):
    course = built_course
    text = course.source.read_text(encoding="utf-8")
    marker = '# %% tags=["exercise"] exercise='
    first, second, end = text.index(marker), text.rindex(marker), text.index("# %% [markdown]\n# ## Watch")
    course.source.write_text(text[:first] + text[second:end] + text[first:second] + text[end:], encoding="utf-8")
    assert ["90-halve"] == [each.cell for each in findings(course)]


def test_a_heading_says_what_is_optional_and_nothing_else(built_course):
    double, halve = built_course.lesson.exercises
    beyond = dataclasses.replace(halve, points=0, optional=True)
    built_course.lesson = dataclasses.replace(built_course.lesson, exercises=(double, beyond))
    assert [(each.cell, each.message) for each in findings(built_course)] == [
        ("90-halve", "it is optional, and the heading above does not say so")
    ]
    heading = '# %% [markdown]\n# ## One more (1 minute, optional)\n\n# %% tags=["exercise"] exercise="90.halve"'
    built_course.edit('# %% tags=["exercise"] exercise="90.halve"', heading)
    assert findings(built_course) == []
    built_course.lesson = dataclasses.replace(built_course.lesson, exercises=(double, halve))
    assert [each.message for each in findings(built_course)] == ["the heading above says optional, and it has points"]


def test_warnings_and_machine_dependent_outputs_are_found(built_course):
    path = built_course.solutions / built_course.lesson.notebook
    executed = nbformat.read(path, 4)
    cells = {cell.id: cell for cell in executed.cells}
    new = nbformat.v4.new_output
    cells["90-halve-check"].outputs = [new("stream", name="stdout", text="in /home/me/x at 0x7f0012345678")]
    cells["90-in-the-engine-2"].outputs = [new("stream", name="stderr", text="UserWarning: slow\n")]
    cells["90-watch-2"].outputs = [new("display_data", data={"image/png": "aGk=", "text/plain": "<Figure>"})]
    path.write_text(build.writes(executed), encoding="utf-8")
    found = {each.cell: each.message for each in lint.lint("90")}
    assert set(found) == {"90-halve-check", "90-in-the-engine-2", "90-watch-2"}
    assert "/home/me/x" in found["90-halve-check"] and "UserWarning" in found["90-in-the-engine-2"]
    assert found["90-watch-2"] == "a figure has no alt text"
    cells["90-watch-2"].outputs = [new("display_data", data={"text/plain": "Stepper()"})]
    path.write_text(build.writes(executed), encoding="utf-8")
    assert "leaves nothing on a web page" in {each.cell: each.message for each in lint.lint("90")}["90-watch-2"]


def test_without_an_execution_the_form_is_linted_all_the_same(course):
    course.edit("Double x, of shape (...).", "Double x.")
    found = lint.lint_lesson(course.lesson, course.solutions)
    assert [each.cell for each in found] == ["(all)", "90-double"]
    assert "llmsys build 90" in str(found[0])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("It takes 12 ms, or 3.5 GB/s: 40% less, 2× faster; 2 × N.", ["12 ms", "3.5 GB/s", "40%", "2×"]),
        ("At $x > 88.7$ it is infinite.", ["88.7"]),
        ("1,024 elements in 3 passes; 2,048 KiB of them", ["2,048 KiB"]),
        ("A 128×64 tile, 4 × 4 of them, O(1)", []),
        ("Section 3.2 of Python 3.11.4 on torch 2.13, `t = 0.5`", []),
        ("```\n0.25 s\n```\nand [this](https://x.org/2407.21783) <!-- 1.5 -->", []),
        ("It costs 501 KiB; ≈ 1.33 times", ["501 KiB", "1.33"]),
        ("7 segments, 3 models, 5 s long", ["5 s"]),
    ],
)
def test_numbers_with_a_unit_or_decimals_are_claims(text, expected):
    assert list(claims(text)) == expected


def test_a_claim_is_shown_where_the_same_figure_stands_with_its_unit():
    assert is_shown("11.09", "e^11.09 is finite") and is_shown("40%", "saves 40 %") and is_shown("2×", "is 2× that")
    assert not is_shown("1.09", "11.09") and not is_shown("11.0", "11.09") and not is_shown("3 ms", "13 ms")
    assert not is_shown("3 ms", "3 s") and not is_shown("3 s", "3 seconds")


def test_links_and_source_comments_are_citations():
    assert is_cited("see [the paper](https://arxiv.org/abs/1805.02867)") and is_cited("12 ms <!-- source: measured -->")
    assert not is_cited("see [above](#above)") and not is_cited("<!-- source: -->")


def test_alt_texts_are_found_in_images_svgs_and_metadata():
    def alt(html):
        return list(pictures({"cell_type": "markdown", "source": html}))

    assert alt("<svg viewBox='0 0 1 1'><title>a bar</title></svg>") == [("an SVG", "a bar")]
    assert alt('<svg role="img" aria-label="a bar">') == [("an SVG", "a bar")]
    assert alt("<svg><g/></svg>") == [("an SVG", "")]
    assert alt("<img src='a.png' alt='a cat'>") == [("an image", "a cat")]
    assert alt('<img src="a">') == [("an image", "")]
    assert alt("`<img>` in code") == []
    output = {"data": {"image/png": "aGk="}, "metadata": {"image/png": {"alt": "a curve"}}}
    assert list(pictures({"cell_type": "code", "source": "", "outputs": [output]})) == [("a figure", "a curve")]


@pytest.mark.parametrize(
    "source, free",
    [
        ("import torch\ndef f(x):\n    y = [torch.exp(z) for z in x]\n    return y", set()),
        ("def f(x):\n    return g(x)\ndef g(x):\n    return x", set()),
        ("def f(x):\n    return helper(x) + math.pi", {"helper", "math"}),
        ("@triton.jit\ndef f(x: tl.constexpr):\n    pass", {"triton", "tl"}),
        ("class A:\n    size = 3\n    def f(self):\n        return size", {"size"}),
        ("from x import (a, b as c)\nprint(a, b, c, len)", {"b"}),
        ("def f(a, *b, **c):\n    return lambda d: a + b + c + d", set()),
    ],
)
def test_free_names_are_those_that_a_cell_neither_defines_nor_imports(source, free):
    assert exercise_rules.free_names(source) == free


@pytest.mark.parametrize("lesson", [each.number for each in manifest.lessons()])
def test_the_courses_own_lessons_have_nothing_to_mend(lesson):
    assert "\n".join(map(str, lint.lint(lesson))) == ""


CLASS_FOR_DOUBLE = '''class double:
    """Double x, of shape (...)."""

    def __init__(self, x):
        ### BEGIN SOLUTION
        self.x = x
        ### END SOLUTION

    def twice(self):
        ### BEGIN SOLUTION
        return 2 * self.x
        ### END SOLUTION
'''
FUNCTION_FOR_DOUBLE = '''def double(x):
    """Double x, of shape (...)."""
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION
'''


@pytest.mark.parametrize(
    ("cell", "complaints"),
    [
        (CLASS_FOR_DOUBLE, []),
        (CLASS_FOR_DOUBLE.replace("        ### END SOLUTION\n\n", "\n"), ["it has not one solution"]),
        (CLASS_FOR_DOUBLE.replace(", of shape (...)", ""), ["the docstring of double says no shapes"]),
        (FUNCTION_FOR_DOUBLE.replace("    return", "    ### END SOLUTION\n    ### BEGIN SOLUTION\n    return"),
         ["it has not one solution"]),
    ],
)  # fmt: skip
def test_a_class_may_have_a_solution_in_each_method_and_a_function_one(built_course, cell, complaints):
    built_course.edit(FUNCTION_FOR_DOUBLE, cell)
    assert [each.message for each in findings(built_course) if each.cell == "90-double"] == complaints
