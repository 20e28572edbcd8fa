"""The house: a lesson is found in four places, and imports run one way, without circles.

Every import is read from the sources, those inside functions included, and nothing is imported for it.
"""

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmsys.course import manifest
from llmsys.course.authoring.new import places

ROOT = Path(__file__).parents[1]

# A package may import those of its own line and of the lines above it.
ORDER = [
    ["hardware"],
    ["attention", "moe", "precision"],
    ["cache"],
    ["models"],
    ["parallel"],
    ["training", "serving"],
    ["bench", "viz"],
    ["course"],
    ["lessons"],
    ["moved", "__main__"],
]
# The same within llmsys/course.
COURSE_ORDER = [
    ["manifest", "display", "installation", "waiting"],
    ["workspace", "checking"],
    ["grading", "predictions", "doctor"],
    ["attempts"],
    ["authoring"],
    ["cli"],
]


@dataclass(frozen=True)
class Import:
    """That a module imports another one, and in which line. `relative` where it is written with dots."""

    module: str
    target: str
    line: int
    relative: bool = False


def modules(root: Path, package: str) -> dict[str, Path]:
    """The package's modules by their dotted names, a folder's `__init__` by the folder's."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(text: str, module: str, known: set[str], package: str) -> Iterator[Import]:
    """What a module's source imports of its own package. The target is a module where there is one of that name: `from
    llmsys.viz import kit` imports llmsys.viz.kit, and `from llmsys.viz import Picture` imports llmsys.viz."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield Import(module, node.module or "", node.lineno, relative=True)
            continue
        elif isinstance(node, ast.ImportFrom):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [name if name in known else node.module for name in inner]
        else:
            continue
        for target in dict.fromkeys(targets):
            if target.partition(".")[0] == package:
                yield Import(module, target, node.lineno)


def all_imports(root: Path, package: str = "llmsys") -> list[Import]:
    """The imports in a package's modules of other modules of the package."""
    files = modules(root, package)
    found = [each for name, path in files.items() for each in imports(path.read_text(), name, set(files), package)]
    return [each for each in found if each.target not in (package, each.module)]


def circles(found: list[Import]) -> list[list[str]]:
    """The groups of modules that import each other, directly or by way of others (Tarjan's algorithm)."""
    arrows: dict[str, list[str]] = {}
    for each in found:
        arrows.setdefault(each.module, []).append(each.target)
    index, lowest, stack, groups, counter = {}, {}, [], [], itertools.count()

    def visit(module: str) -> None:
        index[module] = lowest[module] = next(counter)
        stack.append(module)
        for target in arrows.get(module, []):
            if target not in index:
                visit(target)
            if target in stack:
                lowest[module] = min(lowest[module], lowest[target])
        if lowest[module] == index[module]:
            group = [stack.pop()]
            while group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1:
                groups.append(sorted(group))

    for module in list(arrows):
        if module not in index:
            visit(module)
    return groups


def against_the_order(found: list[Import], order: list[list[str]], package: str) -> list[str]:
    """The imports, in words, of a part of the package from one that comes after it; and parts that have no place."""
    rank = {part: n for n, line in enumerate(order) for part in line}

    def part(module: str) -> str:
        return module.removeprefix(f"{package}.").partition(".")[0]

    inside = [each for each in found if all(name.startswith(f"{package}.") for name in (each.module, each.target))]
    unplaced = sorted({part(name) for each in inside for name in (each.module, each.target)} - set(rank))
    wrong = [each for each in inside if rank.get(part(each.module), 99) < rank.get(part(each.target), -1)]
    return [f"{package}.{name} has no place in the order" for name in unplaced] + [
        f"{each.module} imports {each.target} (line {each.line}), which comes after it" for each in wrong
    ]


# The course's own house


@pytest.fixture(scope="module")
def found() -> list[Import]:
    return all_imports(ROOT)


@pytest.mark.parametrize("lesson", manifest.lessons(), ids=lambda lesson: lesson.name)
def test_a_lesson_is_found_in_four_places_by_its_name(lesson):
    source, content, pictures, test = places(lesson.number, lesson.slug, ROOT)
    assert source == ROOT / f"solutions/{lesson.name}.py" and source.is_file()
    assert (content / "__init__.py").is_file()
    modules = {path.stem for path in content.glob("*.py")}
    modules |= {path.parent.name for path in content.glob("*/__init__.py")}
    assert "checks" in modules
    assert lesson.package == ".".join(content.relative_to(ROOT).parts)
    if not all(exercise.kernel for exercise in lesson.exercises):
        assert "mistakes" in modules
    assert modules & {"mistakes", "kernel_mistakes"}
    assert (pictures / "__init__.py").is_file() and len(list(pictures.glob("*.py"))) > 1
    assert test.is_file()


def test_nothing_in_these_places_belongs_to_no_lesson():
    names, slugs = {each.name for each in manifest.lessons()}, {each.slug for each in manifest.lessons()}
    shared = {"kit", "charts", "roofline", "course"}  # pictures of no lesson's own
    assert {path.stem for path in (ROOT / "solutions").glob("*.py")} == names
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests/lessons").glob("test_*.py")}
    assert names <= tests and {test[:3] for test in tests} == {name[:3] for name in names}  # a lesson may have several
    folders = {path.parent.name for path in (ROOT / "llmsys/lessons").glob("*/__init__.py")}
    assert folders == {f"lesson_{name}" for name in names}
    assert {path.parent.name for path in (ROOT / "llmsys/viz").glob("*/__init__.py")} == slugs | shared


def test_no_module_imports_itself_by_way_of_others(found):
    assert circles(found) == []


def test_imports_run_one_way_between_packages(found):
    assert against_the_order(found, ORDER, "llmsys") == []


def test_imports_run_one_way_within_the_course_package(found):
    assert against_the_order(found, COURSE_ORDER, "llmsys.course") == []


def test_every_import_is_absolute(found):
    assert [each for each in found if each.relative] == []


def test_nothing_is_imported_under_a_name_that_has_moved(found):
    """Old names are for learners' files: `llmsys.attention.flash_kernels` is no module of the tree, though it loads."""
    known = modules(ROOT, "llmsys")
    lessons = [(path.stem, python_of(path.read_text())) for path in sorted((ROOT / "solutions").glob("*.py"))]
    of_lessons = [each for name, text in lessons for each in imports(text, name, set(known), "llmsys")]
    assert [each for each in [*found, *of_lessons] if each.target not in known] == []


def python_of(lesson: str) -> str:
    """A lesson's source without IPython's own lines, which are no Python."""
    return re.sub(r"^[ \t]*[%!].*$", "", lesson, flags=re.MULTILINE)


# What finds all this, on trees that are made up


def tree(folder: Path, files: dict[str, str]) -> list[Import]:
    for name, text in files.items():
        path = folder / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return all_imports(folder, "house")


def test_a_circle_is_found_inside_functions_too(tmp_path):
    files = {
        "__init__.py": "",
        "a.py": "from house.b import x\nimport json",
        "b.py": "def f():\n    from house import c",
        "c.py": "import house.a\nfrom house import d",
        "d.py": "import house",
    }
    assert circles(tree(tmp_path, files)) == [["house.a", "house.b", "house.c"]]
    assert circles(tree(tmp_path, {"c.py": "from house import d"})) == []


def test_two_circles_are_two(tmp_path):
    files = {"a": "import house.b", "b": "import house.a", "c": "import house.d, house.a", "d": "import house.c"}
    found = tree(tmp_path, {f"{name}.py": text for name, text in files.items()})
    assert circles(found) == [["house.a", "house.b"], ["house.c", "house.d"]]


def test_an_import_from_a_later_package_is_found_with_its_line(tmp_path):
    files = {
        "low/__init__.py": "",
        "low/a.py": "\ndef f():\n    from house.high.b import x",
        "high/b.py": "from house.low import a\nfrom house.beside import c",
        "beside/c.py": "",
    }
    found = tree(tmp_path, files)
    backward = "house.low.a imports house.high.b (line 3), which comes after it"
    assert against_the_order(found, [["low"], ["high", "beside"]], "house") == [backward]
    assert against_the_order(found, [["beside"], ["high"], ["low"]], "house") == [
        "house.high.b imports house.low.a (line 1), which comes after it"
    ]


def test_a_package_without_a_place_in_the_order_is_found(tmp_path):
    found = tree(tmp_path, {"new/a.py": "import house.old.b", "old/b.py": ""})
    assert against_the_order(found, [["old"]], "house") == ["house.new has no place in the order"]


def test_relative_imports_and_names_that_are_no_module_are_found(tmp_path):
    found = tree(tmp_path, {"__init__.py": "", "a.py": "from . import b\nfrom house.gone import x", "b.py": ""})
    assert [(each.target, each.relative) for each in found] == [("", True), ("house.gone", False)]
