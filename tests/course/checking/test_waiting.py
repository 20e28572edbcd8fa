"""The line that is shown where a check takes long."""

import io
import sys
import time

import pytest

from llmsys.course.checking import waiting
from llmsys.course.checking.waiting import Waiting


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_line_says_what_is_done_and_is_gone_afterwards():
    shown = []
    with Waiting("97.x", show=shown.append, first=0.01, next=0.01) as line:
        line.say("many tiles")
        wait_for(lambda: any("many tiles" in each for each in shown))
        line.say("one tile")
        wait_for(lambda: any("one tile" in each for each in shown))
    assert shown[0].startswith("… 97.x: ") and shown[0].endswith(" s") and shown[-1] == ""
    assert shown.count("") == 1


def test_what_is_over_soon_shows_nothing():
    shown = []
    with Waiting("97.x", show=shown.append, first=60) as line:
        line.say("many tiles")
    assert shown == []


def test_the_line_is_gone_after_an_interruption_too():
    shown = []
    with pytest.raises(KeyboardInterrupt), Waiting("97.x", show=shown.append, first=0.01):
        wait_for(lambda: shown)
        raise KeyboardInterrupt
    assert shown[-1] == ""


class Shell:
    """What get_ipython gives: in a notebook it has a kernel, which knows whether anybody could be asked for input."""

    def __init__(self, person):
        self.kernel, self.display_pub, self.published = type("Kernel", (), {"_allow_stdin": person})(), self, []

    def get_ipython(self):
        return self

    def publish(self, data, transient, update):
        self.published.append((data["text/plain"], transient["display_id"], update))


def test_a_notebook_that_is_only_executed_shows_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", Shell(person=False))
    assert waiting._place() is None


def test_in_an_open_notebook_one_output_changes(monkeypatch):
    shell = Shell(person=True)
    monkeypatch.setitem(sys.modules, "IPython", shell)
    with Waiting("97.x", first=0.01, next=0.01):
        wait_for(lambda: len(shell.published) > 2)
    assert len({display for _, display, _ in shell.published}) == 1
    assert [update for *_, update in shell.published][:3] == [False, True, True] and shell.published[-1][0] == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_in_a_terminal_the_line_is_written_over_and_in_a_pipe_there_is_none(monkeypatch, terminal):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    with Waiting("97.x", first=0.01, next=0.01):
        time.sleep(0.1)
    assert stream.getvalue().count("\n") == 0 and stream.getvalue().endswith("\r\x1b[K") is terminal
