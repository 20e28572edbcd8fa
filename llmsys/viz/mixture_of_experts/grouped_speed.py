"""How fast grouped products and layers of experts are, on a GPU: rows of `llmsys bench moe`."""

import statistics
from collections.abc import Mapping

from llmsys.viz.kit.numbers import number
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

OURS, PEER, LOOP = "llmsys", "torch._grouped_mm", "loop"
FORMS = {OURS: ("blue", "o"), PEER: ("orange", "s"), LOOP: ("green", "x")}
LAYERS = {"layer forward": "a layer", "layer forward and backward": "with its backward"}
"""What is measured of a layer, and what it is called beside the products."""
LOADS = {"even": ("blue", "o"), "skewed": ("purple", "D"), "one in eight": ("green", "^"), "decode": ("ink", "v")}
"""Colour and marker of each."""


def grouped_speed(record) -> Picture:
    """Left: TFLOP/s of the product and of whole layers, for each shape and load, of the library's kernels, of torch's
    and of a loop over experts. Right: how many times as fast as torch's the library's are, product and gradients,
    layers forward and with their backward.

    record    a `llmsys.bench.Record` of the moe benchmark

    Raises ValueError where it has no products on a GPU.
    """
    import matplotlib.pyplot as plt

    products, layers = products_of(record), layers_of(record)
    ratios = ratios_of(record)
    high = 1.4 + 0.45 * max(len(products) + len(layers), len(ratios))
    with chart_style():
        figure, (speed, ratio) = plt.subplots(1, 2, figsize=(7.8, high), width_ratios=(1.15, 1))
        _speed(speed, products, layers)
        _ratio(ratio, ratios)
        speed.legend(frameon=False, fontsize=8.5, loc="upper left")
        place = dict(loc="lower right", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.2)
        ratio.legend(frameon=False, fontsize=8.5, ncols=2, columnspacing=1.0, **place)
    return chart(figure, alt=_in_words(record, products, layers))


def products_of(record) -> dict[tuple[str, str], dict[str, Mapping]]:
    """The products that are no decode step, by shape and load: the row of each form."""
    found: dict[tuple[str, str], dict[str, Mapping]] = {}
    for row in getattr(record, "rows", record):
        if row["what"] == "product" and row["load"] != "decode" and row["name"] in FORMS:
            found.setdefault((row["shape"], row["load"]), {})[row["name"]] = row
    if not found:
        raise ValueError("record must have products on a GPU, and has none: take recorded('moe')")
    return found


def layers_of(record) -> dict[tuple[str, str, str], dict[str, Mapping]]:
    """The layers that are no decode step, by what of them, shape and load: the row of each form."""
    found: dict[tuple[str, str, str], dict[str, Mapping]] = {}
    for what in LAYERS:
        for row in getattr(record, "rows", record):
            if row["what"] == what and row["load"] != "decode" and row["name"] in FORMS:
                found.setdefault((what, row["shape"], row["load"]), {})[row["name"]] = row
    return found


def ratios_of(record) -> dict[str, dict[str, list[float]]]:
    """What -> load -> how many times as fast as torch's the library's are, of each shape."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in getattr(record, "rows", record):
        if row["name"] == OURS and row["ratio"] is not None:
            found.setdefault(row["what"], {}).setdefault(row["load"], []).append(row["ratio"])
    return found


def _speed(axes, products, layers) -> None:
    lines = [*products.values(), *layers.values()]
    for name, (colour, marker) in FORMS.items():
        points = [(here[name]["tflops"], y) for y, here in enumerate(lines) if name in here]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=LIGHT[colour], ms=6.5, label=name,
                      mfc=LIGHT[colour] if name == OURS else "none", mew=1.5)  # fmt: skip
    words = [f"{load}\n{_short(shape)}" for shape, load in products]
    words += [f"{LAYERS[what]}: {load}\n{shape.split(', ')[-1]}" for what, shape, load in layers]
    axes.set_yticks(range(len(lines)), words, fontsize=8)
    if layers:
        axes.axhline(len(products) - 0.5, color=LIGHT["muted"], lw=1)
    fastest = max(row["tflops"] for here in lines for row in here.values())
    axes.set(xlim=(0, 1.08 * fastest), xlabel="TFLOP/s", ylim=(len(lines) - 0.5, -0.5))
    axes.grid(axis="both")
    axes.set_title("rows × their expert's matrix" + ("; whole layers" if layers else ""))


def _ratio(axes, ratios) -> None:
    for load, (colour, marker) in LOADS.items():
        points = [(each, y) for y, here in enumerate(ratios.values()) for each in here.get(load, ())]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=LIGHT[colour], ms=6, label=load, mfc="none", mew=1.5)
    axes.axvline(1, color=LIGHT["muted"], lw=1.2, ls=(0, (4, 3)))
    axes.set_yticks(range(len(ratios)), [what.replace(" and ", "\nand ") for what in ratios], fontsize=8)
    axes.set(xlabel=f"times as fast as {PEER}", ylim=(len(ratios) - 0.5, -0.5))
    axes.set_xlim(min(0.7, axes.get_xlim()[0]), max(1.3, axes.get_xlim()[1]))
    axes.grid(axis="both")


def _short(shape: str) -> str:
    """ "64 experts, 65,536 rows, 2048 → 1408" without its rows."""
    experts, _, sizes = shape.split(", ")
    return f"{experts}, {sizes}"


def _in_words(record, products, layers) -> str:
    said, named = [], {", ".join(key): here for key, here in (*products.items(), *layers.items())}
    for what, here in named.items():
        figures = " and ".join(f"{name} {number(row['tflops'], 3)}" for name, row in here.items())
        said.append(f"{what}: {figures} TFLOP/s")
    many = {what: [each for those in here.values() for each in those] for what, here in ratios_of(record).items()}
    middle = "; ".join(f"{what} {number(statistics.median(each), 3)}" for what, each in many.items())
    return (
        f"Grouped products{' and layers' if layers else ''} on {record.device}. {'; '.join(said)}. The library's, in "
        f"times of {PEER}, medians: {middle}."
    )
