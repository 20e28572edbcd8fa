"""FLOP/s of naive attention as it grows, with the fall where its matrices no longer fit into the cache."""

import math
from collections.abc import Sequence

from llmsys.hardware.devices import DeviceSpec
from llmsys.hardware.roofline import roofline_seconds
from llmsys.viz.kit.numbers import rate
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
SERIES = (("blue", "o"), ("orange", "^"), ("muted", "s"), ("ink", "D"))
"""Colour and marker of each line of measurements, in their order."""


def ridge(rows: Sequence[dict], device: DeviceSpec) -> Picture:
    """FLOP/s of naive attention against its tokens: measured, and as the rooflines of cache and memory allow.

    rows      measurements: dicts with name, B, H, T, D, dtype and tflops (of the two products)
    device    a device, best a calibrated one, with l2_bytes and l2_bandwidth of its last cache; without these there is
              only the roofline of its memory

    The bound is that of three kernels: q kᵀ, softmax, P v. As long as S and P both fit into the cache, its bandwidth
    counts, from there on that of the memory. Raises ValueError where there is nothing to draw.
    """
    import matplotlib.pyplot as plt

    if not rows:
        raise ValueError("rows must have at least one measurement of naive attention, got none")
    shape = {key: rows[0][key] for key in ("B", "H", "D", "dtype")}
    if any({key: row[key] for key in shape} != shape for row in rows):
        raise ValueError("rows must all have the same B, H, D and dtype: the bound is drawn for one of them")
    lines: dict[str, dict[int, float]] = {}
    for row in sorted(rows, key=lambda row: row["T"]):
        lines.setdefault(row["name"], {})[row["T"]] = row["tflops"] * 1e12
    first, last = min(row["T"] for row in rows), max(row["T"] for row in rows)
    star = wall(device, **shape)
    tokens = sorted({round(first * (last / first) ** (k / 120)) for k in range(121)})
    with chart_style():
        figure, axes = plt.subplots(figsize=(7.6, 3.7))
        bounds = [(T, bound(device, T, **shape)) for T in tokens]
        top = max([flops for _, flops in bounds] + [flops for line in lines.values() for flops in line.values()])
        near, far = ([point for point in bounds if (point[0] <= star) == fits] for fits in (True, False))
        for part, words in ((near, "least time:\nS and P from the cache"), (far, "least time:\nS and P from memory")):
            if part:
                axes.plot(*zip(*part, strict=True), color=LIGHT["purple"], lw=2)
                high = max(flops for _, flops in part) + 0.03 * top
                place = {"x": part[0][0], "ha": "left"} if part is near else {"x": part[-1][0], "ha": "right"}
                axes.text(y=high, s=words, color=LIGHT["purple"], va="bottom", **place)
        if near and far:
            axes.axvline(star, color=LIGHT["purple"], lw=1, ls=(0, (4, 3)))
            axes.text(star * 1.02, 0.02 * top, f"T* = {star:,.0f}", color=LIGHT["purple"], va="bottom")
        for (name, line), (colour, marker) in zip(lines.items(), SERIES * len(lines), strict=False):
            axes.plot(list(line), list(line.values()), marker=marker, color=LIGHT[colour], label=name)
        axes.set(xscale="log", ylim=(0, 1.25 * top), xlabel="tokens T", ylabel="FLOP/s of the two products")
        axes.yaxis.set_major_formatter(lambda value, _: rate(value, unit="") if value else "0")
        ticks = [T for T in (2**p for p in range(30)) if first <= T <= last] or [first]
        axes.set_xticks(ticks, [f"{T >> 10}k" if T >= 1024 else str(T) for T in ticks])
        axes.minorticks_off()
        axes.grid(axis="y")
        axes.set_title(f"naive attention, {shape['B'] * shape['H']} × D = {shape['D']}, {shape['dtype']}")
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(lines), borderaxespad=0)
    said = "; ".join(
        f"{name} reaches {rate(line[min(line)])} at {min(line):,} tokens, {rate(max(line.values()))} at best and "
        f"{rate(line[max(line)])} at {max(line):,}"
        for name, line in lines.items()
    )
    leaves = f" S and P fit into its cache up to {star:,.0f} tokens." if star else ""
    return chart(figure, alt=(
        f"FLOP/s of naive attention against tokens on {device.name}. {said}. The roofline allows {rate(bounds[0][1])} "
        f"at {first:,} tokens and {rate(bounds[-1][1])} at {last:,}.{leaves}"
    ))  # fmt: skip


def wall(device: DeviceSpec, *, B: int, H: int, D: int, dtype: str) -> float:
    """The tokens up to which S and P of all heads fit into the cache; 0 if nothing is known of a cache."""
    if not (device.l2_bytes and device.l2_bandwidth):
        return 0.0
    return math.sqrt(device.l2_bytes / (2 * ITEMSIZE[dtype] * B * H))


def bound(device: DeviceSpec, T: int, *, B: int, H: int, D: int, dtype: str) -> float:
    """FLOP/s of naive attention's two products if its three kernels take no more than their least time."""
    near = T <= wall(device, B=B, H=H, D=D, dtype=dtype)
    size, heads = ITEMSIZE[dtype], B * H
    product = (2 * heads * T * T * D, size * heads * (2 * T * D + T * T))
    softmax = (0, size * heads * 2 * T * T)
    peak = device.flops_per_byte(dtype) * device.bandwidth
    bandwidth = device.l2_bandwidth if near else device.bandwidth
    return 2 * product[0] / roofline_seconds([product, softmax, product], peak_flops=peak, bandwidth=bandwidth)
