"""The doctor: right about this machine, and of use on machines that are not like it."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from llmsys.course import doctor
from llmsys.course.doctor import LIMITED, MISSING, OK, PACKAGES, diagnose
from llmsys.hardware import calibration, devices
from llmsys.hardware.tier import tier

ROOT = Path(__file__).parents[2]
SMI = "NVIDIA H100 80GB HBM3, 81559, {driver}, {capability}"


def line(name):
    return next(each for each in diagnose().lines if each.name == name)


def pretend(monkeypatch, **versions):
    """Say that these packages are installed in these versions (None: not at all)."""
    installed = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: versions[name] if name in versions else installed(name))


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A function that installs the tool of an NVIDIA driver, and a torch that was built for CUDA 13."""

    def install(driver="580.95.05", capability="9.0", count=1, cuda="13.0"):
        tool = tmp_path / "nvidia-smi"
        listed = "\n".join([SMI.format(driver=driver, capability=capability)] * count)
        tool.write_text(f"#!/bin/sh\ncat <<END\n{listed}\nEND\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(doctor, "torch_cuda", lambda: cuda)

    return install


def test_the_doctor_and_the_library_name_the_same_tier():
    assert diagnose().tier == tier()
    assert diagnose() and re.search(r"runs? here", diagnose().verdict)


def test_the_doctors_versions_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {}
    for requirement in project["dependencies"]:
        name, bounds = re.match(r"([\w-]+)([^;]*)", requirement).groups()
        assert "<" not in bounds, f"{name} in a newer version is not to be refused: the doctor warns"
        asked[name] = re.search(r">=([\d.]+)", bounds).group(1)
    assert asked == {name: oldest for name, (oldest, _) in PACKAGES.items()}
    assert project["requires-python"] == ">={},<{}".format(*doctor.PYTHONS)
    assert doctor.MODEL in (ROOT / "Makefile").read_text()


def test_the_doctor_needs_the_standard_library_alone_and_says_how_to_get_torch():
    code = "from llmsys.course.doctor import diagnose; d = diagnose(); print(d); raise SystemExit(not d)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 1 and done.stderr == ""
    assert "✗ torch" in done.stdout and 'python -m pip install "torch>=2.11,<2.16"' in done.stdout
    assert done.stdout.splitlines()[-1].startswith("The lessons do not run here yet: see torch, ")


def test_the_doctor_answers_without_importing_what_it_looks_for():
    code = "import sys; from llmsys.course.doctor import diagnose; diagnose(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "triton", "numpy", "matplotlib"}.isdisjoint(done.stdout.split())


@pytest.mark.parametrize(
    ("version", "mark"),
    [(None, MISSING), ("2.10.1", MISSING), ("2.11.0", OK), ("2.13.0+cu130", OK), ("2.15.0", OK), ("2.15.3+cpu", OK)]
    + [("2.16.0", LIMITED), ("3.0", LIMITED)],
)
def test_a_torch_that_is_too_old_or_newer_than_tested_is_marked(monkeypatch, version, mark):
    pretend(monkeypatch, torch=version)
    found = line("torch")
    assert found.mark == mark
    assert bool(found.remedy) == (mark != OK)
    assert bool(diagnose()) == (mark != MISSING), "newer than tested is a warning: the lessons run"


@pytest.mark.parametrize(("version", "mark"), [("3.6.0", OK), ("3.8.0", OK), ("3.9.0", OK), ("3.10.0", LIMITED)])
def test_a_triton_that_is_newer_than_tested_is_a_warning(monkeypatch, version, mark):
    pretend(monkeypatch, triton=version, numpy="2.3.5")
    monkeypatch.setattr(doctor, "triton_of_torch", lambda: version)
    assert line("triton").mark == mark and diagnose()
    if mark == LIMITED:
        assert f"{version} is newer than what the course is tested with, 3.6 to 3.9" in line("triton").found


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    pretend(monkeypatch, tokenizers=None, gguf="0.9")
    found = line("packages")
    assert found.mark == MISSING and "tokenizers, gguf" in found.found
    assert found.remedy == 'python -m pip install "tokenizers>=0.21" "gguf>=0.17"'


@pytest.mark.parametrize(
    ("triton", "numpy", "bad"), [("3.6.0", "2.4.0", True), ("3.6.0", "2.3.5", False), ("3.7.1", "2.4.6", False)]
)
def test_triton_and_numpy_that_do_not_go_together(monkeypatch, triton, numpy, bad):
    pretend(monkeypatch, triton=triton, numpy=numpy)
    monkeypatch.setattr(doctor, "triton_of_torch", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = line("triton")
    assert (found.mark == LIMITED) == bad and ("numpy<2.4" in found.remedy) == bad
    if bad:  # a compiled kernel does not care
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        assert line("triton").mark == OK


def test_a_triton_that_torch_was_not_released_with(monkeypatch):
    pretend(monkeypatch, triton="3.7.0")
    monkeypatch.setattr(doctor, "triton_of_torch", lambda: "3.7.1")
    assert line("triton").mark == LIMITED and "triton==3.7.1" in line("triton").remedy


def test_without_triton_the_lessons_run(monkeypatch):
    pretend(monkeypatch, triton=None)
    found = diagnose()
    assert found and found.tier == "pytorch" and found.verdict.endswith("Triton kernels do not.")
    assert found.lines[0] == doctor.Line(OK, "tier", "1 of 3, PyTorch: all but the Triton kernels")


def test_a_gpu_that_torch_can_use(gpu, monkeypatch):
    gpu(count=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert diagnose().tier == tier() == "gpu"
    assert line("GPU") == doctor.Line(OK, "GPU", "2 × NVIDIA H100 80GB HBM3, 80 GiB, driver 580.95.05")
    assert diagnose().verdict.endswith("Triton kernels are compiled for the GPU.")
    assert line("tier").found == "3 of 3, GPU: kernels are compiled"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET=1" in diagnose().verdict
    assert line("tier").found.startswith("2 of 3, Triton's interpreter") and "TRITON_INTERPRET=1" in line("tier").found


@pytest.mark.parametrize(
    ("machine", "environment", "why"),
    [
        ({"driver": "535.183.01"}, {}, "driver is too old for torch's CUDA 13.0"),
        ({"cuda": None}, {}, "a build for the CPU"),
        ({}, {"CUDA_VISIBLE_DEVICES": ""}, "hidden by CUDA_VISIBLE_DEVICES"),
        ({"capability": "7.5"}, {}, "8.0 (Ampere) and later"),
    ],
)
def test_a_gpu_that_cannot_be_used_says_why(gpu, monkeypatch, machine, environment, why):
    gpu(**machine)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert line("GPU").mark == LIMITED and why in line("GPU").found and line("GPU").remedy


def test_the_c_compiler_matters_on_a_gpu_only(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "C compiler" not in [each.name for each in diagnose().lines]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert line("C compiler").mark == LIMITED and "a C compiler" in line("C compiler").found


def test_the_kernel_is_found_and_is_this_python(monkeypatch, tmp_path):
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    folder = tmp_path / "kernels" / "llmsys"
    folder.mkdir(parents=True)
    for program, mark in ((sys.executable, OK), ("/somewhere/else/bin/python", LIMITED)):
        (folder / "kernel.json").write_text(json.dumps({"argv": [program, "-m", "ipykernel_launcher"]}))
        assert line("kernel").mark == mark
    assert "/somewhere/else" in line("kernel").found and "ipykernel install" in line("kernel").remedy


@pytest.mark.parametrize(("system", "advice"), [("darwin", "dev container"), ("win32", "WSL 2")])
def test_other_systems_are_told_what_to_do_instead(monkeypatch, system, advice):
    pretend(monkeypatch, triton=None)
    monkeypatch.setattr(doctor.sys, "platform", system)
    found = doctor._system()
    assert found.mark == LIMITED and advice in found.remedy and "Colab" in found.remedy


def test_without_the_model_only_cells_that_use_it_do_not_run(monkeypatch):
    find = doctor.importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if "smollm" in name else find(name))
    found = diagnose()
    assert found and "but for their cells with a model" in found.verdict
    assert f"--no-deps {doctor.MODEL}" in line("model").remedy


def test_the_workspace_is_found_from_above_and_from_inside(monkeypatch, tmp_path):
    monkeypatch.delenv("LLMSYS_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert line("workspace").remedy == "llmsys start work"
    (tmp_path / "work" / ".llmsys").mkdir(parents=True)
    assert line("workspace").found == str(tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    assert line("workspace").found == str(tmp_path / "work")


def test_the_notebooks_table_holds_what_the_text_holds(monkeypatch):
    pretend(monkeypatch, torch=None)
    found = diagnose()
    html = found._repr_html_()
    assert html.count("<tr") == len(found.lines) and "&quot;torch&gt;=2.11,&lt;2.16&quot;" in html
    shown = re.sub(r"<[^>]*>", " ", html)
    assert all(each.name in shown and each.name in repr(found) for each in found.lines)
    assert found.verdict in shown


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A function that puts a measurement into this user's cache."""
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def put(key, **spec):
        calibration.write(calibration.default_path(), key, spec)

    return put


def test_the_speed_is_shown_once_it_was_measured(cache):
    assert line("speed").mark == OK and "not measured yet: llmsys doctor --measure" in line("speed").found
    torch_here = f"torch {torch.__version__}"
    cache(f"Some GPU, {torch_here}, 4 threads", bandwidth=3e12, flops={"float32": 5e13, "bfloat16": 7.5e14})
    products = "50 TFLOP/s in float32 and 750 TFLOP/s in bfloat16"
    said = f"copies 3 TB/s, multiplies matrices at {products}: the ridge is at 250 FLOP a byte"
    assert line("speed") == doctor.Line(OK, "speed", said)
    cache(f"Some CPU, {torch_here}, 2 threads", bandwidth=1.234e10, flops={"float32": 9.87e10})
    assert "12.3 GB/s" in line("speed").found and "98.7 GFLOP/s in float32: the ridge is at 8 " in line("speed").found


def test_torchs_release_is_what_torch_itself_says():
    assert doctor.torch_release() == torch.__version__


def test_a_speed_measured_with_another_torch_is_not_shown(cache, tmp_path):
    cache("Some CPU, torch 1.0, 2 threads", bandwidth=1e10, flops={"float32": 1e11})
    assert "not measured yet" in line("speed").found
    (tmp_path / "llmsys" / "this_machine.json").write_text("[]")
    assert "not measured yet" in line("speed").found


def test_what_is_measured_here_is_what_is_shown(cache, monkeypatch):
    monkeypatch.setattr(devices, "_seconds", lambda run: run() is None or 1e-3)
    spec = devices.this_machine()
    assert f"the ridge is at {spec.flops_per_byte(list(spec.flops)[-1]):.3g} FLOP a byte" in line("speed").found


def test_versions_are_compared_as_numbers():
    assert doctor.numbers("2.13.0+cpu") == (2, 13, 0) and doctor.numbers("3.7.1.post2") == (3, 7, 1)
    assert doctor.numbers("2.9") < doctor.numbers("2.11") and doctor.numbers("[N/A]") == ()


def test_a_missing_triton_comes_in_the_version_that_torch_was_released_with(monkeypatch):
    pretend(monkeypatch, triton=None)
    monkeypatch.setattr(doctor, "triton_of_torch", lambda: "3.8.0")
    assert line("triton").remedy == "python -m pip install triton==3.8.0"
    monkeypatch.setattr(doctor, "triton_of_torch", lambda: None)
    assert line("triton").remedy == 'python -m pip install "triton>=3.6,<3.10"'
