"""A jail for a learner's process, where the machine has one: bubblewrap.

bubblewrap (`bwrap`, https://github.com/containers/bubblewrap) starts a program in namespaces of its own, without
needing root. In ours there are no processes but the learner's, no network but loopback, a /dev/shm of its own, and
nothing can be written but one directory; what lies in the places that are named is not even there. So an answer
changes no file, finds no other learner's process or folder, and reaches nobody's memory.

Whether bubblewrap *runs* is found out by running it, once: many containers, and systems that restrict user namespaces
(Ubuntu 24.04 by AppArmor), have it installed and do not let it. Where it does not run, `why_not` says what it said.
"""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

PROBE_SECONDS = 20
ROOT = Path(__file__).resolve().parents[3]  # where this llmsys is imported from


def available() -> bool:
    """Whether a jail can be had here."""
    return not why_not()


@functools.cache
def why_not() -> str:
    """Why there is no jail here, in words; "" where there is one."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "bubblewrap (bwrap) is not installed"
    command = [*_walls(bwrap), "--", sys.executable, "-IS", "-c", "pass"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap does not run here ({error})"
    said = done.stderr.strip().rpartition("\n")[2]
    return "" if done.returncode == 0 else f"bubblewrap does not run here ({said or done.returncode})"


def jailed(
    command: Sequence[str], directory: str | Path, path: Iterable[str], hidden: Iterable[str | Path]
) -> list[str]:
    """The command, in a jail where it may write to `directory` and nowhere else.

    What lies in `hidden`, and in the places for temporary files, is not there, but for what the command needs: Python,
    this installation, and `path`, what else it imports from.
    """
    places = [Path(each).resolve() for each in hidden]
    temporary = [Path(directory).resolve().parent, Path("/tmp"), Path("/var/tmp")]
    away = sorted({each for each in (*places, *temporary, ROOT / "solutions") if each.is_dir() and each != Path("/")})
    needed = {Path(each).resolve() for each in (*_python(), *path) if each}
    needed -= {ROOT, *away}
    mounts = []
    for each in away:
        mounts += ["--tmpfs", str(each)]
    for each in sorted(needed):
        if each.exists() and any(each.is_relative_to(place) for place in away):
            mounts += ["--ro-bind", str(each), str(each)]
    own = str(Path(directory).resolve())
    return [*_walls(shutil.which("bwrap")), *mounts, "--bind", own, own, "--chdir", own, "--", *command]


def _walls(bwrap: str) -> list[str]:
    return [
        bwrap, "--unshare-all", "--die-with-parent", "--cap-drop", "ALL", "--ro-bind", "/", "/", "--dev", "/dev",
        "--proc", "/proc", "--tmpfs", "/dev/shm",
    ]  # fmt: skip


def _python() -> list[str]:
    """Where Python and its packages are. Of a checkout that is on the path, the package alone."""
    found = [sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(sys.executable), *sys.path]
    return [str(ROOT / "llmsys"), *(each for each in found if each and Path(each).resolve() != ROOT)]
