"""What the doctor looks at, found out without importing anything that may be missing, broken or slow.

Versions come from the packages' metadata, torch's CUDA from the file that its build left behind, the GPU from the tool
that comes with its driver. Everything here is the standard library, and says None or nothing where it cannot know.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Gpu:
    """What the driver says of one GPU; memory in bytes, `capability` as in (9, 0) for Hopper."""

    name: str
    memory: int
    driver: str
    capability: tuple[int, ...]


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs that the driver's tool lists; none where there is no driver."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[field.strip() for field in line.split(",")] for line in answer.splitlines()]
    rows = [row for row in rows if len(row) == 4]
    return [Gpu(row[0], int(row[1]) << 20 if row[1].isdigit() else 0, row[2], numbers(row[3])) for row in rows]


def version(package: str) -> str | None:
    """The installed version of a package, or None. Does not import it."""
    if sys.modules.get(package, package) is None:
        return None  # a test blocks a package by putting None there
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.13.0+cpu" is (2, 13, 0)."""
    return tuple(int(part) for part in re.match(r"[\d.]*", version).group().strip(".").split(".") if part)


def torch_cuda() -> str | None:
    """The CUDA version that the installed torch was built for ("13.0"), or None for a CPU build or no torch at all."""
    return _said_by_torchs_build("cuda", r"[\d.]+")


def torch_release() -> str | None:
    """The installed torch's version as torch itself says it, "2.14.1+cu130", where its metadata may say "2.14.1"."""
    return _said_by_torchs_build("__version__", r"[^'\"]+") or version("torch")


def _said_by_torchs_build(name: str, value: str) -> str | None:
    """What the file that torch's build has left behind gives as the value of a name."""
    spec = importlib.util.find_spec("torch") if version("torch") else None
    if spec is None or not spec.origin:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(rf"^{name}\b[^=]*=\s*['\"]({value})['\"]", text, re.MULTILINE)
    return found.group(1) if found else None


def triton_of_torch() -> str | None:
    """The triton version that the installed torch was released with, if its metadata names one."""
    requirements = importlib.metadata.requires("torch") or [] if version("torch") else []
    found = (re.match(r"triton\s*\(?==\s*([\d.]+)", each) for each in requirements)
    return next((each.group(1) for each in found if each), None)


def system() -> str:
    """The operating system's name and version, as people call it."""
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    if sys.platform != "linux":
        return f"{platform.system()} {platform.release()}"
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = "Linux"
    return f"{name} in WSL" if "microsoft" in platform.release().lower() else name


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int | None:
    """Bytes of memory: the machine's, or its container's limit where that is lower."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found = min(found, int(Path(limit).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            pass
    return found
