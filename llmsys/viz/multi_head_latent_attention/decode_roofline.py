"""How fast attention to latents is, on a GPU: rows of `llmsys bench mla_decode` under the roofs of that GPU."""

from llmsys.hardware.devices import detect
from llmsys.viz.kit.numbers import number, seconds_in_words
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

KERNELS = {"gluon": ("blue", "o"), "triton": ("orange", "s")}
FORMS = {"gluon": ("absorbed, gluon", "blue"), "triton": ("absorbed, triton", "orange"),
         "expanded": ("cache of keys and values", "green"), "naive": ("naive", "purple")}  # fmt: skip
BATCH, PAGE = 32, 64
"""Smaller batches do not fill a GPU, and are left out. Of pages one size is drawn."""
LEAST, MOST = 20, 800
"""FLOP a byte, the ends of the axis."""


def decode_roofline(record, *, batch: int = 128, context: int = 4096) -> Picture:
    """Left: TFLOP/s of the absorbed form against its FLOP a byte, under a copy's speed and the data sheet's peak.
    Right: microseconds of each form, for one shape and each number of heads.

    record            a `llmsys.bench.Record` of the mla_decode benchmark
    batch, context    of the shape on the right

    Raises ValueError where it has no such rows, or is of no GPU that is known.
    """
    import matplotlib.pyplot as plt

    device = detect(record.device)
    points, times = points_of(record), times_of(record, batch, context)
    if device is None or not points or not times:
        raise ValueError(
            f"record must be of mla_decode on a known GPU, with {batch} sequences of {context} tokens, got one of "
            f"{record.benchmark} on {record.device}"
        )
    copy = max(row["gbps"] for row in record.rows if row["name"] == "copy") * 1e9
    peak = device.flops["bfloat16"]
    with chart_style():
        figure, (roof, bars) = plt.subplots(1, 2, figsize=(7.8, 3.7), width_ratios=(1.15, 1))
        _roofline(roof, points, copy, peak)
        _times(bars, times, f"{batch} sequences of {context:,}")
    return chart(figure, alt=_in_words(record, points, times, copy, peak, batch, context))


def points_of(record) -> dict[str, list[tuple[int, int, float, float]]]:
    """Kernel -> (heads, new tokens, FLOP a byte, TFLOP/s) of each large shape."""
    found: dict[str, list] = {}
    for row in record.rows:
        if row["name"] in KERNELS and row["B"] >= BATCH and row["page"] == PAGE and row["shortest"] >= 1024:
            intensity = row["tflops"] * 1e6 * row["us"] / row["bytes"]
            found.setdefault(row["name"], []).append((row["Hq"], row["tokens"], intensity, row["tflops"]))
    return found


def times_of(record, batch: int, context: int) -> dict[int, dict[str, float]]:
    """Heads -> form -> microseconds, of a step of one new token a sequence."""
    found: dict[int, dict[str, float]] = {}
    for row in record.rows:
        here = (row["B"], row["shortest"], row["longest"], row["tokens"], row["page"])
        if row["name"] in FORMS and here == (batch, context, context, 1, PAGE):
            found.setdefault(row["Hq"], {})[row["name"]] = row["us"]
    return dict(sorted(found.items()))


def _roofline(axes, points, copy: float, peak: float) -> None:
    ridge = peak / copy
    axes.plot([LEAST, ridge, MOST], [LEAST * copy / 1e12, peak / 1e12, peak / 1e12], color=LIGHT["ink"], lw=1.8)
    axes.text(LEAST * 1.1, 5 * LEAST * copy / 1e12, f"a copy:\n{copy / 1e12:.2f} TB/s", fontsize=8.5)
    axes.text(MOST, peak / 1e12 * 1.08, f"{peak / 1e12:.0f} TFLOP/s", fontsize=8.5, ha="right")
    for name, (colour, marker) in KERNELS.items():
        some = [point[2:] for point in points.get(name, [])]
        if some:
            axes.plot(*zip(*some, strict=True), marker, color=LIGHT[colour], ms=5.5, mew=1.3, label=name,
                      mfc=LIGHT[colour] if name == "gluon" else "none")  # fmt: skip
    labels = {(heads, tokens): intensity for some in points.values() for heads, tokens, intensity, _ in some}
    for (heads, tokens), intensity in labels.items():
        words = f"{heads}\n× {tokens}" if tokens > 1 else f"{heads}\n"
        axes.text(intensity, 21, words, fontsize=8.5, ha="center", color=LIGHT["muted"])
    axes.set(xscale="log", yscale="log", xlim=(LEAST, MOST), ylim=(18, 1.6 * peak / 1e12))
    axes.set(xlabel="FLOP for each byte of latents", ylabel="TFLOP/s")
    axes.set_title("absorbed, by heads (× new tokens)")
    axes.set_xticks([30, 100, 300], ["30", "100", "300"])
    axes.set_yticks([30, 100, 300, 1000], ["30", "100", "300", "1000"])
    axes.minorticks_off()
    axes.grid(axis="both")
    axes.legend(frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(1.02, 0.1))


def _times(axes, times, title: str) -> None:
    for name, (words, colour) in FORMS.items():
        some = [(here[name], y) for y, here in enumerate(times.values()) if name in here]
        if some:
            axes.plot(*zip(*some, strict=True), "o", color=LIGHT[colour], ms=7, label=words)
    axes.set_yticks(range(len(times)), [f"{heads} heads" for heads in times])
    axes.set(xscale="log", xlabel="µs of a layer's step", ylim=(len(times) - 0.5, -0.5))
    axes.set_xticks([100, 1000, 10_000, 100_000], ["100", "1,000", "10,000", "100,000"])
    axes.minorticks_off()
    axes.set_title(title)
    axes.grid(axis="both")
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)


def _in_words(record, points, times, copy, peak, batch, context) -> str:
    speeds = "; ".join(
        f"{name} with {heads} heads and {tokens} new token{'s' * (tokens > 1)} {min(found):.0f} to {max(found):.0f}"
        for name, some in points.items()
        for heads, tokens in dict.fromkeys(point[:2] for point in some)
        for found in [[point[3] for point in some if point[:2] == (heads, tokens)]]
    )
    took = "; ".join(
        f"{heads} heads: " + ", ".join(f"{FORMS[name][0]} {seconds_in_words(us * 1e-6)}" for name, us in here.items())
        for heads, here in times.items()
    )
    return (
        f"Attention to latents on {record.device.removeprefix('NVIDIA ')}, where a copy has {number(copy / 1e12)} TB/s "
        f"and the data sheet {peak / 1e12:.0f} TFLOP/s. TFLOP/s of the absorbed form: {speeds}. A layer's step of "
        f"{batch} sequences of {context:,} tokens: {took}."
    )
