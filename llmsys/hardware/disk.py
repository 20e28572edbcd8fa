"""Is there a disk to write to? Asked before the work whose result would be lost."""

import os
import shutil
from pathlib import Path


def check_writable(folder: str | Path, *, need: int = 0) -> None:
    """Whether files of `need` bytes in all can be written into `folder`, which may not be there yet. Makes nothing.

    Raises
    ------
    OSError
        There is a file in its place, the disk or the folder is read-only, or too little is free. The message is one
        line, and says what to do.
    """
    folder = Path(folder)
    there = next((each for each in (folder, *folder.parents) if each.exists()), Path("."))
    if not there.is_dir():
        raise NotADirectoryError(f"{folder}: no folder, for {there} is a file; give another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: nothing can be written there, {there} is read-only; give another folder")
    if need and (free := shutil.disk_usage(there).free) < need:
        raise OSError(
            f"{folder}: {need / 1e6:,.1f} MB are needed, and {free / 1e6:,.1f} MB are free on that disk; make room, or "
            "give another folder"
        )
