"""The recorded sweep of the flash kernel: complete, and of the kernel that is shipped."""

import importlib.metadata
import importlib.util
import json
from dataclasses import astuple

import pytest

from llmsys.viz.flash_triton.kernel_sweep import FILE, Configuration, configurations, recorded, recorded_with, write


def test_the_file_has_every_configuration_once(tmp_path):
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    assert [Configuration(*row[:5]) for row in kept["rows"]] == configurations()
    assert all(result.shared_bytes > 0 and 0 < result.registers <= 255 for result in recorded().values())
    found = recorded()
    write(found, tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert again["rows"] == kept["rows"] == [[*astuple(each), *astuple(found[each])] for each in found]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_some_configurations_compiled_again_give_what_is_recorded(tmp_path, monkeypatch):
    if importlib.metadata.version("triton") != recorded_with():
        pytest.skip(f"the file is of triton {recorded_with()}")
    from llmsys.viz.flash_triton.compile_sweep import compile_all  # imports Triton

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    some = [Configuration(64, 64, 64, 4, 3), Configuration(128, 32, 32, 8, 2)]
    remedy = "run python -m llmsys.viz.flash_triton.compile_sweep, and commit"
    assert compile_all(some) == {each: recorded()[each] for each in some}, remedy
