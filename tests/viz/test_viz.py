"""The package: importing it costs nothing, a room is found by its folder, and former names still draw."""

import subprocess
import sys
from pathlib import Path

import pytest

from llmsys import viz
from llmsys.viz.former_names import FORMER_NAMES

ROOMS = sorted(path.parent.name for path in Path(viz.__file__).parent.glob("*/__init__.py"))
HEAVY = ("torch", "matplotlib", "ipywidgets", "IPython")


def imported(code: str, names: tuple[str, ...]) -> str:
    """Which of these modules a fresh process has imported after some code."""
    code += f"\nimport sys; print([name for name in {names} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    assert imported("from llmsys import viz", HEAVY) == "[]"


def test_importing_every_room_imports_no_triton_and_nothing_that_draws():
    code = "from llmsys import viz\nfor room in viz.__all__: getattr(viz, room)"
    assert imported(code, ("triton", "matplotlib", "ipywidgets", "IPython", "llmsys.course")) == "[]"


def test_the_rooms_are_the_folders():
    assert viz.__all__ == ROOMS and set(ROOMS) <= set(dir(viz))
    assert {"kit", "charts", "roofline", "course", "tiled_attention"} <= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_is_in_it_and_offers_functions_and_classes(room):
    package = getattr(viz, room)
    offered = set(package.__all__)
    assert offered and all(callable(getattr(package, name)) for name in offered)
    assert all(getattr(package, name).__doc__ for name in offered)
    modules = {path.stem for path in Path(package.__file__).parent.glob("*.py")} - {"__init__"}
    said = [line.split()[0] for line in package.__doc__.splitlines()[2:] if line.strip()]
    assert set(said) == modules  # a line each


@pytest.mark.parametrize("name", FORMER_NAMES)
def test_a_former_name_is_the_drawing_that_it_was(name):
    room, _, drawing = FORMER_NAMES[name].partition(":")
    found = getattr(viz, name)
    assert found is getattr(getattr(viz, room), drawing) and found.__module__.startswith(f"llmsys.viz.{room}.")
    assert name in dir(viz) and name not in ROOMS


def test_an_unknown_name_is_answered_with_the_rooms():
    with pytest.raises(AttributeError, match="has no attribute 'plot_everything'; it has the rooms .*tiled_attention"):
        viz.plot_everything  # noqa: B018
