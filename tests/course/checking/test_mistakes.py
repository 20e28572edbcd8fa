"""Wrong answers as edits of a right one."""

import inspect

import pytest
import torch

from llmsys.course.checking import diagnosis
from llmsys.course.checking.diagnosis import misconceptions_of
from llmsys.course.checking.mistakes import Mistakes, edited
from llmsys.course.checking.runner import LocalRunner

FACTOR = 3


def scaled(x):
    """A right answer."""
    y = FACTOR * x
    return y + y


@pytest.fixture(autouse=True)
def no_misconceptions(monkeypatch):
    monkeypatch.setattr(diagnosis, "_registry", {})
    monkeypatch.setattr(diagnosis, "load_content", lambda lesson, module: None)


def test_an_edited_function_runs_the_changed_text_under_its_own_name():
    wrong = edited(scaled, "added", ("FACTOR * x", "FACTOR + x"))
    assert wrong.__name__ == "added" and wrong(2) == 10
    assert scaled(2) == 12


def test_changes_are_made_one_after_the_other():
    assert edited(scaled, "both", ("FACTOR", "5"), ("5 * x", "7 * x"))(1) == 14


def test_a_text_that_is_there_more_than_once_is_changed_where_the_number_of_times_is_said():
    assert edited(scaled, "squared", ("y", "1", 3), ("1 = FACTOR * x", "pass"))(2) == 2


@pytest.mark.parametrize("change, found", [(("no such text", ""), 0), (("y", "x"), 3), (("y", "x", 2), 3)])
def test_a_text_that_is_not_there_as_often_as_expected_is_an_error_that_names_it(change, found):
    with pytest.raises(ValueError, match=f"unchanged: '{change[0]}' must be in scaled .*, it is {found} times"):
        edited(scaled, "unchanged", change)


def test_each_mistake_shows_its_own_lines_though_two_lessons_have_mistakes_of_one_name():
    first, second = edited(scaled, "same", ("FACTOR", "5")), edited(scaled, "same", ("FACTOR", "7"))
    assert "5 * x" in inspect.getsource(first) and "7 * x" in inspect.getsource(second)
    assert "7 * x" in inspect.getsource(edited(second, "again", ("y + y", "y")))


def test_an_edit_is_not_taken_for_a_function_that_is_forbidden_by_name():
    forbids = (f"{__name__}:scaled", scaled)
    assert LocalRunner(scaled, forbids=forbids).run((torch.ones(2),), {}).called
    assert not LocalRunner(edited(scaled, "scaled"), forbids=forbids).run((torch.ones(2),), {}).called


def test_mistakes_are_registered_in_the_order_in_which_they_are_written():
    wrong = Mistakes("95.scaled", scaled)
    first = wrong("no_factor", "You leave out the factor.", ("FACTOR * ", ""), why="It is 3.")
    wrong("once", "You add nothing.", ("y + y", "y"))
    wrong("neither", "You do nothing.", ("y + y", "y"), of=first)
    known = misconceptions_of("95.scaled")
    assert [(each.name, each.function(1)) for each in known] == [("no_factor", 2), ("once", 3), ("neither", 1)]
    assert (known[0].message, known[0].why) == ("You leave out the factor.", "It is 3.")
