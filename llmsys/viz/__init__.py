"""The pictures of the course, drawn from the library's own data structures.

A picture (`Picture`) is an SVG that follows the theme of the page it is shown on, light or dark, and says in words
what it shows. A `Stepper` is a sequence of pictures with buttons: a data structure in motion. The colours are chosen
so that colour-blind eyes can tell them apart, and so that every text can be read in both themes (`style`).

    from llmsys import viz
    viz.online_softmax_stepper([1, 3, 2, 8])

Each name is fetched from its module when it is first used (so no module may be called what a function is called);
matplotlib and ipywidgets are imported when something is drawn or shown, and without ipywidgets a stepper still shows
its most telling frame.
"""

from importlib import import_module

_MODULES = {
    "Picture": "llmsys.viz.picture",
    "chart": "llmsys.viz.picture",
    "Svg": "llmsys.viz.svg",
    "Choice": "llmsys.viz.stepper",
    "Entry": "llmsys.viz.stepper",
    "Stepper": "llmsys.viz.stepper",
    "course_map": "llmsys.viz.maps",
    "tier_picture": "llmsys.viz.maps",
    "course_picture": "llmsys.viz.cover",
    "next_token_stepper": "llmsys.viz.next_token",
    "online_softmax_overview": "llmsys.viz.softmax_diagrams",
    "online_softmax_stepper": "llmsys.viz.online_softmax",
    "merge_tree_stepper": "llmsys.viz.merge_tree",
    "bandwidth_plot": "llmsys.viz.softmax_charts",
    "exp_overflow": "llmsys.viz.softmax_charts",
    "softmax_passes": "llmsys.viz.softmax_diagrams",
    "tiled_overview": "llmsys.viz.tiled_diagrams",
    "tile_walker": "llmsys.viz.tile_stepper",
    "causal_tiles": "llmsys.viz.flash_diagrams",
    "flash_overview": "llmsys.viz.flash_diagrams",
    "backward_overview": "llmsys.viz.backward_diagrams",
    "backward_stepper": "llmsys.viz.backward_walk",
    "hopper_overview": "llmsys.viz.hopper_diagrams",
    "sm_timeline": "llmsys.viz.sm_orders",
    "ring_stepper": "llmsys.viz.ring_walk",
    "fp8_error": "llmsys.viz.fp8_charts",
    "loss_curves": "llmsys.viz.training_charts",
    "memory_wall_overview": "llmsys.viz.memory_wall",
    "naive_traffic": "llmsys.viz.memory_wall",
    "roofline_chart": "llmsys.viz.roofline_charts",
    "ridge_plot": "llmsys.viz.roofline_charts",
    "roofline_explorer": "llmsys.viz.roofline_model",
    "attention_growth": "llmsys.viz.attention_charts",
    "attention_speed": "llmsys.viz.speed_charts",
    "bytes_by_tile": "llmsys.viz.attention_charts",
    "kernel_explorer": "llmsys.viz.kernel_fit",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'llmsys.viz' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
