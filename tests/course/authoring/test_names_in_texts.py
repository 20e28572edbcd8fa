"""Names that a check says to a learner are those of the learner's function."""

import pytest

from llmsys.course.authoring.names_in_texts import strange_names, texts_of
from llmsys.course.checking.checks import Check
from llmsys.course.checking.diagnosis import Misconception

CELL = "def merge(a, b, *, tile=16):\n    m, l = a\n"


@pytest.mark.parametrize(
    "text",
    [
        "You forget `tile`.",
        "with tile=8 it is right",
        "keep it: amax(dim=-1, keepdim=True)",
        "an `if` is no mask",
        "m == l, and a >= b, where x is `m · l`",
        "q.shape[0] and other words in plain text",
    ],
)
def test_what_the_cell_or_python_has_may_be_named(text):
    assert strange_names(CELL, "merge", [text]) == []


@pytest.mark.parametrize(
    ("text", "name"),
    [("You forget `columns`.", "columns"), ("with y_gap=8", "y_gap"), ("merge(a, b, report=1) is wrong", "report")],
)
def test_an_argument_of_something_else_is_found(text, name):
    (found,) = strange_names(CELL, "merge", ["You are right.", text])
    assert found.startswith(f"`{name}` in ")


def test_all_that_a_check_may_say_is_read():
    def check(answer):
        def helper():
            """Of `its_own` arguments no learner reads."""

        with answer.property("the property", why=f"The reason {1}"):
            answer.equal(answer(1), 1)

    def wrong():
        pass

    known = [Misconception("97.x", "What you did.", "Why not.", wrong)]
    texts = list(texts_of(Check("97.x", check, hints=("a nudge",)), known))
    assert {"a nudge", "What you did.", "Why not.", "the property", "The reason "} <= set(texts)
    assert not any("its_own" in text for text in texts)
