"""Cells as the worker runs them (in this process, where nothing hostile is among them)."""

import inspect

import pytest

from llmsys.course.grading.inside.cells import offer_shell
from llmsys.course.grading.worker import _run_cell


def run(*sources):
    """The namespace after these cells, and what the last of them had to say."""
    namespace, said = {}, ""
    offer_shell(namespace)
    for number, source in enumerate(sources):
        said = _run_cell(f"cell {number}", source, namespace)
    return namespace, said


def test_cells_share_a_namespace_and_can_be_looked_up():
    namespace, said = run("n = 2\n", "def double(x):\n    return n * x\n")
    assert said == "" and namespace["double"](3) == 6
    assert inspect.getsource(namespace["double"]) == "def double(x):\n    return n * x\n"


def test_magics_and_shell_lines_are_left_out():
    namespace, said = run("%matplotlib inline\n!pip list\nx = 7\nif x:\n    %time\ny = x % 2\n")
    assert said == "" and (namespace["x"], namespace["y"]) == (7, 1)


@pytest.mark.parametrize(
    ("source", "holds"),
    [
        ("x = 7\nx?\n", "x == 7"),
        ("files = !ls\nx = len(files)\n", "x == 0"),  # no command is run
        ("import asyncio\nawait asyncio.sleep(0)\nx = [y async for y in z()]\n", "x == [1]"),
        ("get_ipython().run_line_magic('matplotlib', 'inline')\nx = 7\n", "x == 7"),
        ("%config InlineBackend.figure_format = 'svg'\nx = (7\n     % 4)\n", "x == 3"),
        ("t = %timeit -o -q -n1 -r1 sum(range(9))\n", "t.best > 0"),
        ("%%time\ndef f():\n    return 3\n", "f() == 3"),
        ("%%capture said\nprint('no')\nx = 7\n", "x == 7 and said.stdout == 'no\\n'"),
        ("%pip install torch\nx = 7\n", "x == 7"),
        ("%%bash\nexit 1\n", "True"),
    ],
)
def test_a_cell_is_what_ipython_makes_of_it(source, holds):
    namespace, said = run("async def z():\n    yield 1\n", source)
    assert said == "" and eval(holds, namespace)


def test_a_future_import_applies_to_its_own_cell_only():
    namespace, said = run("from __future__ import annotations\ndef f(x: Nothing): ...\n")
    assert said == "" and namespace["f"].__annotations__ == {"x": "Nothing"}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("x = 1\nx +\n", "raised SyntaxError: invalid syntax (<cell 0>, line 2)\nline 2 of the cell: x +"),
        ("def f():\n    raise ValueError('no')\n\nf()\n", "raised ValueError: no\nline 2 of the cell: raise"),
        ("import sys\nsys.exit('bye')\n", "raised SystemExit: bye\nline 2 of the cell: sys.exit('bye')"),
        ("raise KeyboardInterrupt\n", "raised KeyboardInterrupt\nline 1 of the cell"),
        ("helper(3)\n", "put into it what it needs"),
        ("import json\njson.loads('{')\n", "\nline 2 of the cell: json.loads('{')"),
        ("x = '\\0'\nx\0\n", "raised "),
        ("(" * 10_000, "raised "),
    ],
)
def test_what_went_wrong_is_said_in_words(source, says):
    assert says in run(source)[1]


def test_an_exception_that_cannot_be_shown_is_still_one():
    said = run("class Sly(Exception):\n    def __str__(self):\n        raise SystemExit\n\nraise Sly\n")[1]
    assert said.startswith("raised an exception that cannot be shown\nline 5")
