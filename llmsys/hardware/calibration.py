"""Where this machine's measured speed is kept: one file in the user's cache folder.

`llmsys.hardware.devices.this_machine` measures and writes it. It is read with the standard library alone, so that the
doctor can show it without waiting for torch.
"""

import json
import os
import sys
from pathlib import Path


def default_path() -> Path:
    """`llmsys/this_machine.json` in the folder that this platform has for caches."""
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "llmsys" / "this_machine.json"


def read(path: Path | None = None) -> tuple[str, dict] | None:
    """The key, which says on what it was measured (device, torch's version, threads), and the fields of a `DeviceSpec`.

    None where there is no file, or not one of ours: then it is measured again.
    """
    try:
        kept = json.loads((path or default_path()).read_text(encoding="utf-8"))
        return str(kept["key"]), dict(kept["spec"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write(path: Path, key: str, spec: dict) -> None:
    """Write the file that `read` reads. Where it cannot be written, nothing is: the next process measures again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_text(json.dumps({"key": key, "spec": spec}, indent=1), encoding="utf-8")
        beside.replace(path)  # in one step: two notebooks may do this at the same time
    except OSError:
        pass
