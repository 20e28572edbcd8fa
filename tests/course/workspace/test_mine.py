"""`mine`: what passed can be imported again, in a fresh process, whatever its cell leaned on."""

import importlib
import re
import subprocess
import sys
from collections import Counter

import cloudpickle
import pytest

from llmsys.course import manifest
from llmsys.course.workspace.mine import export_answer, mine, put_section
from llmsys.course.workspace.workspace import MINE
from tests.support.cells import Cells

SETUP = """
import math
import torch
from torch import Tensor as T
import torch.nn.functional as F
SCALE = 2.5
LOW = float("-inf")

def helper(x):
    return other_helper(x) * SCALE

def other_helper(x):
    return x + 1
"""
CELL = '''# My first try was wrong.
from functools import reduce

FACTOR = 3  # a constant of the cell's own
unused = torch.ones(1)

# What it does:
def merge(x: T, low=LOW) -> T:
    """Merge."""
    # a comment inside
    return reduce(max, [helper(x) * FACTOR, math.exp(0)])


print("shown, not kept")
merge(torch.ones(()))
for i in range(3):
    print(i)
get_ipython().run_line_magic("timeit", "merge(1)")
'''


@pytest.fixture
def notebook():
    notebook = Cells()
    notebook.run(SETUP)
    return notebook


def in_a_fresh_process(work, program):
    done = subprocess.run([sys.executable, "-c", program], cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_answer_is_exported_with_the_imports_constants_and_helpers_that_it_uses(notebook, work):
    notebook.run(CELL)
    path = export_answer("02.merge", notebook["merge"])
    text = path.read_text()
    assert path == work / "mine" / "lesson_02.py"
    for kept in ("# What it does:", "# a comment inside", '"""Merge."""', "FACTOR = 3", "import math", "SCALE = 2.5"):
        assert kept in text
    for left_out in ("shown, not kept", "get_ipython", "for i in range(3)", "unused", "torch.nn.functional"):
        assert left_out not in text
    program = "from mine import merge; from mine.lesson_02 import merge as again; print(merge(1.0), again(1.0))"
    assert in_a_fresh_process(work, program) == "15.0 15.0"


def test_exporting_again_replaces_the_section_and_nothing_else(notebook, work):
    notebook.run("def online_softmax(x):\n    return merge(x)")
    notebook.run("def merge(x):\n    return 1")
    path = export_answer("02.online_softmax", notebook["online_softmax"])
    export_answer("02.merge", notebook["merge"])
    once = path.read_text()
    export_answer("02.merge", notebook["merge"])
    assert path.read_text() == once
    assert once.index("02.merge") < once.index("02.online_softmax")  # in the manifest's order
    path.write_text(once + "\nmine_too = 4\n")
    notebook.run("def merge(x):\n    return 2")
    export_answer("02.merge", notebook["merge"])
    assert "mine_too = 4" in path.read_text()
    assert in_a_fresh_process(work, "from mine import online_softmax as f; print(f(0))") == "2"


def test_a_function_that_uses_an_answer_not_passed_yet_takes_it_along(notebook, work):
    notebook.run("def merge(x):\n    return x + 1")
    notebook.run("def fold(x):\n    return merge(merge(x))")
    export_answer("02.online_softmax", notebook["fold"])
    assert in_a_fresh_process(work, "from mine import fold; print(fold(1))") == "3"


def test_what_a_function_calls_its_own_variables_is_not_taken_from_the_notebook(notebook, work):
    own = ("n", "said", "left", "each", "part", "error", "word", "inner", "outer")
    notebook.run("\n".join(f"{name} = 10957" for name in own) + "\nlimit = 7")
    notebook.run(
        "class Steps:\n"
        "    def share_out(self, n, said=limit):\n"
        "        left = n\n"
        "        for part in [each for each in range(left)]:\n"
        "            said += part\n"
        "        try:\n            word = str(said)\n"
        "        except ValueError as error:\n            return error\n"
        "        outer = 1\n"
        "        def add(inner):\n            return inner + outer\n"
        "        return word, add(left), limit\n"
    )
    text = export_answer("02.merge", notebook["Steps"]).read_text()
    assert "limit = 7" in text and "10957" not in text
    assert in_a_fresh_process(work, "from mine import Steps; print(Steps().share_out(3))") == "('10', 4, 7)"


def test_a_name_of_the_notebook_that_a_class_has_too_is_kept(notebook, work):
    notebook.run("size, step = 4, 2")
    notebook.run("class Pool:\n    size = size\n    def double(self, step):\n        return self.size * step")
    text = export_answer("02.merge", notebook["Pool"]).read_text()
    assert "size = 4" in text and "step = 2" not in text
    assert in_a_fresh_process(work, "from mine import Pool; print(Pool().double(3))") == "12"


def test_another_name_for_a_helper_or_a_base_class_is_kept(notebook, work):
    notebook.run("class Pool:\n    def name(self):\n        return 'first'\ndef helper(x):\n    return x + 1")
    notebook.run("Base = Pool\nmore = helper")
    notebook.run("class Own(Base):\n    def two(self):\n        return self.name(), more(1), helper(2)")
    text = export_answer("02.merge", notebook["Own"]).read_text()
    assert text.count("def helper") == 1
    assert in_a_fresh_process(work, "from mine import Own; print(Own().two())") == "('first', 2, 3)"
    notebook.run("class Pool(Base):\n    def two(self):\n        return super().name() + ' and second'")
    export_answer("02.merge", notebook["Pool"])
    assert in_a_fresh_process(work, "from mine import Pool; print(Pool().two())") == "first and second"


def test_the_librarys_functions_are_imported_and_not_copied(notebook, work):
    notebook.run("from llmsys.attention.online import merge as join")
    notebook.run("def f(a, b):\n    return join(a, b)")
    text = export_answer("02.merge", notebook["f"]).read_text()
    assert "from llmsys.attention.online import merge as join" in text and "torch.maximum" not in text


def test_kernels_have_a_module_of_their_own(work):
    from llmsys.hardware.tier import triton_installed

    if not triton_installed():
        pytest.skip("needs Triton")
    notebook = Cells()
    notebook.run("from llmsys.hardware.tier import load_triton\ntriton, tl = load_triton()")
    notebook.run("@triton.jit\ndef k(x_ptr, N: tl.constexpr):\n    tl.store(x_ptr, N)")
    path = export_answer("02.softmax_kernel", notebook["k"], kernel=True)
    assert path.name == "lesson_02_kernels.py"
    program = "import torch\nfrom mine import k\nx = torch.zeros(1)\nk[(1,)](x, 7)\nprint(x.item())"
    if "TRITON_INTERPRET" in path.read_text() or not __import__("torch").cuda.is_available():
        assert in_a_fresh_process(work, program) == "7.0"


def test_outside_of_a_workspace_nothing_is_written(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMSYS_WORKSPACE", "")
    monkeypatch.chdir(tmp_path)
    notebook.run("def merge(x):\n    return 1")
    assert export_answer("02.merge", notebook["merge"]) is None and list(tmp_path.iterdir()) == []


def test_an_answer_without_source_is_not_exported(work):
    namespace = {}
    exec("def merge(x):\n    return 1", namespace)
    assert export_answer("02.merge", namespace["merge"]) is None
    assert export_answer("02.merge", len) is None


def test_a_function_of_a_file_is_kept_with_the_files_imports(work):
    text = export_answer("02.merge", put_section).read_text()
    assert "import re" in text and "def put_section" in text and "def export_answer" not in text


def test_mine_says_which_version_is_in_use(notebook, work, capsys):
    assert mine("merge", default=put_section) is put_section
    assert capsys.readouterr().out == "merge: the library's llmsys.course.workspace.mine.put_section\n"
    notebook.run("def merge(x):\n    return 5")
    export_answer("02.merge", notebook["merge"])
    for name in ("merge", "02.merge"):
        assert mine(name, default=put_section)(0) == 5
        assert capsys.readouterr().out == "merge: yours, from mine/lesson_02.py\n"
    notebook.run("def merge(x):\n    return 6")
    export_answer("02.merge", notebook["merge"])
    assert mine("merge", default=put_section)(0) == 6  # the answer of a moment ago, without a restart


def test_by_an_exercises_id_it_is_that_lessons_and_by_name_the_latest(work, capsys):
    (work / "mine").mkdir()
    (work / "mine" / "__init__.py").write_text(MINE)
    (work / "mine" / "lesson_11.py").write_text("def route(): return 11\n")
    (work / "mine" / "lesson_14.py").write_text("def route(): return 14\n")
    assert mine("route", default=put_section)() == 14
    assert mine("11.route", default=put_section)() == 11
    assert mine("14.router", default=put_section)() == 14  # the id is not the function's name
    assert "route: yours, from mine/lesson_11.py\n" in capsys.readouterr().out
    (work / "mine" / "lesson_11.py").unlink()
    importlib.invalidate_caches()
    sys.modules.pop("mine.lesson_11")
    assert mine("11.route", default=put_section) is put_section


def test_lessons_that_ask_for_a_name_of_several_exercises_say_whose():
    functions = Counter(exercise.function for each in manifest.lessons() for exercise in each.exercises)
    asked = [re.findall(r'mine\("([^"]+)"', path.read_text("utf-8")) for path in manifest.solutions_dir().glob("*.py")]
    assert len(asked) > 10 and all(functions[name] <= 1 for names in asked for name in names)


def test_ones_own_version_travels_to_a_process_that_does_not_find_the_workspace(notebook, work, tmp_path_factory):
    notebook.run("import math\n\n\ndef helper(x):\n    return math.floor(x)")
    notebook.run("def merge(x):\n    return helper(x) + 5")
    export_answer("02.merge", notebook["merge"])
    sent = cloudpickle.dumps(mine("merge", default=put_section))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert in_a_fresh_process(elsewhere, f"import pickle; print(pickle.loads({sent!r})(1.5))") == "6"


def test_what_an_answer_imports_from_the_library_is_not_taken_for_ones_own(work, capsys):
    (work / "mine").mkdir()
    (work / "mine" / "__init__.py").write_text("from mine.lesson_02 import *\n")
    (work / "mine" / "lesson_02.py").write_text("from llmsys.course.workspace.mine import put_section\n")
    assert mine("put_section", default=len) is len and "the library's" in capsys.readouterr().out


def test_a_broken_module_falls_back_to_the_library(work, capsys):
    (work / "mine").mkdir()
    (work / "mine" / "__init__.py").write_text("import nonexistent_package\n")
    assert mine("merge", default=put_section) is put_section
