"""What the grader makes of a worker's report: only what is possible, and nothing that a terminal would obey."""

from dataclasses import replace

import pytest
import torch

from llmsys.course.checking.runner import Finding, Raised, Run
from llmsys.course.grading.remote import clean, validated
from llmsys.course.grading.sandbox import Stopped

RUN = Run(
    value=(1, 2.0, "three"),
    reads={0: 2.0, "x": 0.5, "0.1": 1.0},
    largest_bytes=4096,
    largest_shape=(32, 32),
    findings=(Finding("load outside", "program (0, 0, 0) …"),),
    bytes_loaded={"x": 8},
    bytes_stored={"y": 0},
    modified=("its argument x",),
    called=("torch's logsumexp",),
    refused="",
    error=Raised("ValueError", "no", 3, "raise ValueError('no')"),
    printed="hello\n",
)


def test_a_report_arrives_as_it_was_sent():
    assert validated(RUN.to_plain()) == RUN
    assert validated(Run(value=None).to_plain()) == Run(value=None)


@pytest.mark.parametrize(
    "forged",
    [
        {"passed": True},
        {"reads": {0: -1.0}},
        {"reads": {0: float("nan")}},
        {"reads": {0: float("inf")}},
        {"reads": {0: 1}},
        {"reads": {0.5: 1.0}},
        {"reads": []},
        {"largest_bytes": -1},
        {"largest_bytes": "0"},
        {"largest_bytes": True},
        {"largest_shape": (2.0,)},
        {"largest_shape": [2]},
        {"bytes_loaded": {"x": 1.5}},
        {"bytes_stored": {1: 1}},
        {"findings": ("nothing",)},
        {"findings": ({"kind": "x"},)},
        {"modified": (1,)},
        {"called": torch.ones(2)},
        {"refused": None},
        {"printed": 3},
        {"error": "no"},
        {"error": {"type": "ValueError", "message": "", "line": "3", "source": ""}},
        {"error": {"type": "ValueError", "message": "", "line": None, "source": "", "more": 1}},
    ],
    ids=str,
)
def test_an_impossible_report_is_refused(forged):
    with pytest.raises(Stopped) as stopped:
        validated(RUN.to_plain() | forged)
    assert stopped.value.kind == "protocol"


def test_a_report_that_lacks_something_is_refused():
    for name in Run.__dataclass_fields__:
        fields = RUN.to_plain()
        del fields[name]
        with pytest.raises(Stopped):
            validated(fields)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode ✓\n\ttab", "plain ünïcode ✓\n\ttab"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("a\rb\x00c\x08d\x7fe", "abcde"),
        ("one\r\ntwo", "one\ntwo"),
        ("\u202eesrever\u2028", "esrever"),
        ("lone \ud800 surrogate", "lone  surrogate"),
    ],
    ids=repr,
)
def test_text_is_without_control_characters(text, shown):
    assert clean(text) == shown


def test_text_beyond_the_limit_is_cut():
    assert len(clean("x" * 10**6)) < 5000
    assert len(validated(replace(RUN, printed="x" * 10**6).to_plain()).printed) < 5000
