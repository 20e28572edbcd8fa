"""Where something can be written is said before there is something to write."""

import os
import shutil

import pytest

from llmsys.hardware.disk import check_writable


def test_a_folder_that_is_there_or_can_be_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "new", tmp_path / "new" / "deep", "new", "."):
        check_writable(folder, need=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "run", "run/deep"])
def test_a_file_in_its_place(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="no folder, for .*file is a file"):
        check_writable(tmp_path / "file" / below)


def test_a_folder_that_is_read_only(tmp_path, monkeypatch):
    """Asked of the system, for whom no mode is an obstacle where the user is root."""
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))
    with pytest.raises(PermissionError, match="new: nothing can be written there, .* is read-only"):
        check_writable(tmp_path / "new")
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]


def test_a_disk_without_room(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    check_writable(tmp_path / "new", need=10**9)
    with pytest.raises(OSError, match="new: 1,010.0 MB are needed, and 1,000.0 MB are free"):
        check_writable(tmp_path / "new", need=1_010_000_000)
