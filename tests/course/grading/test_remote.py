"""What the grader makes of a worker: of its end, however it comes; of its report, only what is possible, and nothing
that a terminal would obey."""

import sys
from dataclasses import replace

import pytest
import torch

from llmsys.course.checking import wire
from llmsys.course.checking.runner import Finding, Raised, Run
from llmsys.course.grading.remote import RemoteRunner, clean, validated
from llmsys.course.grading.sandbox import Sandbox, Stopped

RUN = Run(
    value=(1, 2.0, "three"),
    reads={0: 2.0, "x": 0.5, "0.1": 1.0},
    largest_bytes=4096,
    afterwards=96,
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
        {"afterwards": 2.5},
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


# A process that stands in for a worker: it says that it is ready, reads what it is asked, and misbehaves; at once, that
# is in the cells, or when the function is called.
STAND_IN = """#!{python} -IS
import os, signal, sys, time
requests, replies = int(sys.argv[-2]), int(sys.argv[-1])
os.write(replies, {ready!r})
os.read(requests, 1 << 16)
if {opens}:
    os.write(replies, {opened!r})
    os.read(requests, 1 << 16)
{does}
"""


@pytest.mark.parametrize("opens", [False, True], ids=["in a cell", "when called"])
@pytest.mark.parametrize(
    ("does", "kind", "says"),
    [
        ("os._exit(3)", "crash", "ended its process (with status 3)"),
        ("sys.exit()", "crash", "ended its process (with status 0)"),
        ("os.kill(os.getpid(), 9)", "crash", "killed by SIGKILL (out of memory?)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crash", "killed by SIGSEGV"),
        ("os.close(replies); time.sleep(60)", "crash", "closed the pipe to the grader"),
        ("os.write(replies, b'passed!' * 99); time.sleep(60)", "protocol", "wrote to the grader's pipe"),
        ("time.sleep(60)", "time limit", "it took longer than 0.3 s"),
        ("os.write(1, b'p' * 10000); os._exit(1)", "crash", "ended its process (with status 1)"),
    ],
)
def test_a_process_that_ends_breaks_the_rules_or_is_silent(tmp_path, monkeypatch, opens, does, kind, says):
    script = tmp_path / "stand_in"
    opened = wire.pack({"serial": 0, "problem": "", "notes": ()})
    ready = wire.pack({"ready": True})
    text = STAND_IN.format(python=sys.executable, ready=ready, opens=opens, opened=opened, does=does)
    script.write_text(text, encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with Sandbox() as sandbox:
        runner = RemoteRunner(sandbox, time_limit=0.3 if kind == "time limit" else 20)
        found = runner.open({"id": "x", "function": "f", "setup": (), "cells": (), "module": ""})
        assert (says in found.problem) != opens, found
        run = runner.run((), {})
        assert (run.error.type, says in run.error.message) == (kind, True), run
        assert runner.run((), {}).error == run.error, "and so it stays"
        assert not sandbox.printed or sandbox.printed.endswith("p" * 99)
