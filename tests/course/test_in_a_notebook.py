"""Checks in a real kernel, driven as JupyterLab does: a slow answer, Ctrl-C, the line for who waits, hints."""

import os
import sys
import time

import ipykernel.kernelspec
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

pytestmark = pytest.mark.slow
START = """
from llmsys.course import attempts, check, hint
from llmsys.course.checking import waiting
attempts.SECONDS, waiting.FIRST, waiting.NEXT = 2.0, 0.3, 0.2

def right(logits):
    return logits[:, -1].argmax(dim=-1)

def endless(logits):
    while True:
        pass

def waits(logits):
    import time
    time.sleep(1.5)
    return right(logits)

def first(logits):
    return logits[:, 0].argmax(dim=-1)

def smallest(logits):
    return logits[:, -1].argmin(dim=-1)
"""


class ThisInterpreter(KernelManager):
    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**ipykernel.kernelspec.get_kernel_dict())


class Cell:
    """What a cell has shown: texts, one after another; the texts that an update has replaced too; the error's name."""

    def __init__(self):
        self.texts: list[str] = []
        self.error = ""

    def __str__(self) -> str:
        return "\n".join(self.texts)


class Notebook:
    """A kernel with a client. `run` executes a cell; `interrupt_after` presses the square button after so long."""

    def __init__(self, folder):
        self.folder, self.manager = folder, ThisInterpreter()
        self.manager.start_kernel(cwd=str(folder), env=os.environ | {"LLMSYS_WORKSPACE": str(folder)})
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, source: str, *, person: bool = True, interrupt_after: float | None = None) -> Cell:
        cell, id = Cell(), self.client.execute(source, allow_stdin=person)
        begun, pressed = time.monotonic(), False
        while time.monotonic() < begun + 120:
            if interrupt_after is not None and not pressed and time.monotonic() > begun + interrupt_after:
                self.manager.interrupt_kernel()
                pressed = True
            try:
                message = self.client.get_iopub_msg(timeout=0.1)
            except Exception:  # nothing for a tenth of a second
                continue
            if message["parent_header"].get("msg_id") != id:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind in ("execute_result", "display_data", "update_display_data"):
                cell.texts.append(content["data"]["text/plain"])
            elif kind == "stream":
                cell.texts.append(content["text"])
            elif kind == "error":
                cell.error = content["ename"]
            elif kind == "status" and content["execution_state"] == "idle":
                return cell
        raise AssertionError(f"the cell did not end: {cell}")

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    (folder / ".llmsys").mkdir()
    opened = Notebook(folder)
    try:
        assert not opened.run(START).error
        yield opened
    finally:
        opened.close()


@pytest.mark.skipif(sys.platform == "win32", reason="a signal stops an answer, and there is none")
def test_an_answer_that_never_ends_is_stopped_and_the_kernel_goes_on(notebook):
    shown = notebook.run('check("00.next_token", endless)')
    assert "it took longer than " in str(shown) and not shown.error
    assert "00.next_token passed" in str(notebook.run('check("00.next_token", right)'))


def test_an_interruption_stops_the_check_and_leaves_the_kernel_usable(notebook):
    notebook.run("attempts.SECONDS = 60.0")
    shown = notebook.run('check("00.next_token", endless)', interrupt_after=1.0)
    assert shown.error == "KeyboardInterrupt"
    state = "import sys, threading; print(sys.getprofile(), threading.getprofile(), __import__('signal').getitimer(2))"
    assert str(notebook.run(state)).strip() == "None None (0.0, 0.0)"  # no instrument of the check's is left
    assert "00.next_token passed" in str(notebook.run('check("00.next_token", right)'))


def test_who_waits_sees_what_is_going_on_and_nobody_else_does(notebook):
    shown = notebook.run('check("00.next_token", waits)')
    lines = [text for text in shown.texts if text.startswith("… 00.next_token: ")]
    assert lines and lines[0].endswith(" s") and "" in shown.texts  # and the line is gone afterwards
    alone = notebook.run('check("00.next_token", waits)', person=False)
    assert len(alone.texts) == 1 and "passed" in str(alone)


def test_the_diagnosis_comes_first_and_a_hint_when_it_is_asked_for(notebook):
    (notebook.folder / ".llmsys" / "progress.json").unlink(missing_ok=True)  # a new learner
    one, two = (str(notebook.run(f'check("00.next_token", {wrong})')) for wrong in ("first", "smallest"))
    assert "Hint" not in one and 'Hint 1 of 3, for the asking: hint("00.next_token")' in two
    assert "This looks like:" in one and one.index("This looks like:") < one.index("got") < one.index("expected  ")
    record = "from llmsys.course.workspace import progress; r = progress.load().exercises['00.next_token']; "
    assert str(notebook.run(record + "print(r.hints, r.asked)")).split() == ["0", "0"]
    nudge = " ".join(str(notebook.run('hint("00.next_token")')).split())
    assert nudge == "Hint 1 of 3: " + " ".join(str(notebook.run(record + "print(r.nudge)")).split())
    assert str(notebook.run(record + "print(r.hints, r.asked)")).split() == ["1", "1"]
