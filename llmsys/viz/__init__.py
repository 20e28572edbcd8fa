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
    "Picture": "llmsys.viz.kit.picture",
    "chart": "llmsys.viz.kit.picture",
    "Svg": "llmsys.viz.kit.svg",
    "Choice": "llmsys.viz.kit.stepper",
    "Entry": "llmsys.viz.kit.stepper",
    "Stepper": "llmsys.viz.kit.stepper",
    "course_map": "llmsys.viz.course.lesson_map",
    "tier_picture": "llmsys.viz.course.lesson_map",
    "course_picture": "llmsys.viz.course.cover",
    "next_token_stepper": "llmsys.viz.start_here.stepper",
    "online_softmax_overview": "llmsys.viz.online_softmax.overview",
    "online_softmax_stepper": "llmsys.viz.online_softmax.stepper",
    "merge_tree_stepper": "llmsys.viz.online_softmax.merge_tree",
    "bandwidth_plot": "llmsys.viz.online_softmax.charts",
    "exp_overflow": "llmsys.viz.online_softmax.charts",
    "softmax_passes": "llmsys.viz.online_softmax.overview",
    "tiled_overview": "llmsys.viz.tiled_attention.overview",
    "tile_walker": "llmsys.viz.tiled_attention.stepper",
    "causal_tiles": "llmsys.viz.flash_triton.overview",
    "flash_overview": "llmsys.viz.flash_triton.overview",
    "backward_overview": "llmsys.viz.backward_pass.overview",
    "backward_stepper": "llmsys.viz.backward_pass.stepper",
    "hopper_overview": "llmsys.viz.flash_hopper.overview",
    "sm_timeline": "llmsys.viz.flash_hopper.sm_timeline",
    "ring_stepper": "llmsys.viz.flash_hopper.ring",
    "fp8_error": "llmsys.viz.flash_hopper.charts",
    "loss_curves": "llmsys.viz.charts.loss_curves",
    "memory_wall_overview": "llmsys.viz.memory_wall.overview",
    "naive_traffic": "llmsys.viz.memory_wall.overview",
    "roofline_chart": "llmsys.viz.roofline.charts",
    "ridge_plot": "llmsys.viz.roofline.charts",
    "roofline_explorer": "llmsys.viz.roofline.explorer",
    "attention_growth": "llmsys.viz.charts.attention_growth",
    "attention_speed": "llmsys.viz.charts.attention_speed",
    "bytes_by_tile": "llmsys.viz.charts.attention_growth",
    "kernel_explorer": "llmsys.viz.flash_triton.kernel_explorer",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'llmsys.viz' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
