"""Lessons are sorted into parts, and the one that stands before all parts comes first in the first."""

from types import SimpleNamespace

from llmsys.viz.course.parts import in_parts


def lesson(number, part):
    return SimpleNamespace(number=number, part=part)


def numbers(*lessons):
    return {part: [each.number for each in members] for part, members in in_parts(lessons).items()}


def test_parts_and_lessons_are_in_the_order_of_numbers():
    found = numbers(lesson("03", "B"), lesson("01", "A"), lesson("02", "A"))
    assert list(found.items()) == [("A", ["01", "02"]), ("B", ["03"])]


def test_the_lesson_before_all_parts_stands_first_in_the_first():
    found = numbers(lesson("01", "A"), lesson("02", "B"), lesson("00", "Start"))
    assert list(found.items()) == [("A", ["00", "01"]), ("B", ["02"])]


def test_where_there_is_no_other_part_start_is_one():
    assert numbers(lesson("00", "Start")) == {"Start": ["00"]}
    assert numbers() == {}
