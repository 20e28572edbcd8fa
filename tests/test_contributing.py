"""CONTRIBUTING.md: every command in it exists and takes its arguments, every path and every package is there."""

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from llmsys.bench import BENCHMARKS
from llmsys.course import cli, manifest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLE = ("13", "sparse_attention")  # the lesson that the text makes


def commands() -> list[str]:
    """The lines of the text's shell blocks, and what stands in backticks and begins like a command."""
    blocks = re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`((?:llmsys |python -m |make |ruff )[^`]*)`", TEXT)
    return list(dict.fromkeys(line.partition("  #")[0].strip() for line in [*lines, *inline]))


def test_the_commands_are_found_in_the_text():
    assert len(commands()) >= 15
    assert {"llmsys", "python", "make", "ruff", "."} == {command.split()[0] for command in commands()}


@pytest.mark.parametrize("command", [each for each in commands() if each.startswith("llmsys ")])
def test_a_command_of_llmsys_exists_and_takes_its_arguments(command):
    _, name, *arguments = shlex.split(command)
    found = typer.main.get_command(cli.app).commands[name]
    found.make_context(name, list(arguments))  # raises where they would be refused
    shown = CliRunner().invoke(cli.app, [name, "--help"])
    assert shown.exit_code == 0 and "Usage" in shown.output
    for lesson in (word for word in arguments if re.match(r"\d\d", word)):
        if lesson != EXAMPLE[0]:
            assert manifest.exercise(lesson) if "." in lesson else manifest.lesson(lesson)


@pytest.mark.parametrize("command", [each for each in commands() if each.startswith("make ")])
def test_a_target_of_make_exists(command):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(VENV)", ".venv")
    (target,) = command.split()[1:]
    assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("command", [each for each in commands() if each.startswith("python -m ")])
def test_a_module_that_is_run_exists_and_so_do_the_files_that_it_is_given(command):
    _, _, module, *arguments = shlex.split(command)
    assert importlib.util.find_spec(module) is not None
    if module == "llmsys.bench":
        assert arguments[0] in BENCHMARKS
    if module == "pytest":
        markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
        names = {line.partition(":")[0] for line in markers}
        for option, value in zip(arguments, arguments[1:], strict=False):
            assert option != "-m" or value.removeprefix("not ") in names
    for path in (word for word in arguments if "/" in word):
        assert (ROOT / path).exists(), path


def test_the_paths_in_the_text_are_there():
    """But for those of the lesson that it makes, and for what is in a learner's or an installation's folder."""
    paths = re.findall(r"`((?:llmsys|solutions|lessons|tests|work)/[\w./]*)`", TEXT)
    others = [path for path in paths if EXAMPLE[1] not in path and not path.startswith("work/")]
    assert len(others) > 15 and [path for path in others if not (ROOT / path).exists()] == []


def test_every_package_has_a_line_in_the_table():
    packages = {path.parent.name for path in (ROOT / "llmsys").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `llmsys/(\w+)/` \|", TEXT, re.MULTILINE)) == packages


def test_the_order_of_imports_in_the_text_is_the_one_that_is_tested():
    source = (ROOT / "tests/test_structure.py").read_text(encoding="utf-8")
    order = re.search(r"^ORDER = \[\n(.*?)^\]", source, re.MULTILINE | re.DOTALL).group(1)
    tested = [re.findall(r'"(\w+)"', line) for line in order.splitlines()]
    tested[-1].remove("__main__")
    said = " ".join(re.search(r"Imports run one way: (.*?)\.", TEXT, re.DOTALL).group(1).split())
    assert [line.strip().split(", ") for line in said.split("→")] == tested
