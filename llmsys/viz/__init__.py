"""The pictures of the course, drawn from the library's own data structures.

Each lesson has a room, a sub-package with the name of the lesson, and so have the things that several lessons draw:

    from llmsys import viz
    viz.tiled_attention.overview()            # what lesson 03 is about, in one picture
    viz.online_softmax.stepper([1, 3, 2, 8])  # a data structure in motion, with buttons
    viz.charts.attention_speed(recorded("attention"))

    kit         what pictures are made of: `Picture`, `Svg`, `chart`, `Stepper` and the colours
    charts      charts of measurements that several lessons show
    roofline    rooflines of devices, with operations on them
    course      the map of the lessons, the tiers, the README's picture
    the rest    one room a lesson

A picture is an SVG that follows the theme of the page it is shown on, light or dark, and says in words what it shows. A
stepper is a sequence of pictures with buttons. The colours are chosen so that colour-blind readers can tell them apart,
and so that every text can be read in both themes (`kit.style`).

A room is imported when it is first asked for, so that `from llmsys import viz` costs nothing. Inside the rooms,
matplotlib and ipywidgets are imported when something is drawn or shown; without ipywidgets a stepper still shows its
most telling frame. Names of before, such as `viz.tile_walker`, still work (`former_names`).
"""

import pkgutil
from importlib import import_module

from llmsys.viz.former_names import FORMER_NAMES

__all__ = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)


def __getattr__(name: str):
    if name in __all__:
        return import_module(f"llmsys.viz.{name}")
    if name in FORMER_NAMES:
        room, _, drawing = FORMER_NAMES[name].partition(":")
        return getattr(import_module(f"llmsys.viz.{room}"), drawing)
    raise AttributeError(f"module 'llmsys.viz' has no attribute {name!r}; it has the rooms {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, *sorted(FORMER_NAMES)]
