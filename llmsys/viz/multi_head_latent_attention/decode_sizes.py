"""How long attention to latents takes on a GPU, by batch, context and heads: rows of `llmsys bench mla_decode`."""

from llmsys.viz.kit.numbers import seconds_in_words
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

KERNELS = {"gluon": "blue", "triton": "orange"}
HEADS = {16: "o", 128: "D"}
PAGE = 64


def decode_sizes(record, *, context: int = 8192, batch: int = 128) -> Picture:
    """Microseconds of a layer's step, one new token a sequence, of each kernel with 16 and 128 heads, above a copy of
    as many bytes. Left: of more and more sequences of `context` tokens. Right: of `batch` sequences, longer and longer.

    record    a `llmsys.bench.Record` of the mla_decode benchmark

    Raises ValueError where it has fewer than two sizes for either.
    """
    import matplotlib.pyplot as plt

    by_batch, by_context = times_by(record, "B", longest=context), times_by(record, "longest", B=batch)
    if min(len(by_batch), len(by_context)) < 2:
        raise ValueError(
            f"record must have two batches at least of {context} tokens, and two contexts of {batch} sequences, got "
            f"{len(by_batch)} and {len(by_context)}"
        )
    with chart_style():
        figure, axes = plt.subplots(1, 2, figsize=(7.8, 3.7), sharey=True)
        _times(axes[0], by_batch, f"sequences of {context:,} tokens")
        _times(axes[1], by_context, f"tokens of each of {batch} sequences")
        axes[0].set_ylabel("µs of a layer's step")
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, frameon=False, fontsize=8.5, loc="outside lower center", ncols=len(handles[0]))
    said = _in_words(by_batch, f"{{}} × {context:,} tokens") + _in_words(by_context, f"{batch} × {{}} tokens")
    alt = f"A layer's step of attention to latents on {record.device.removeprefix('NVIDIA ')}. {' '.join(said)}"
    return chart(figure, alt=alt)


def times_by(record, size: str, **same: int) -> dict[int, dict[tuple[str, int], float]]:
    """Size ("B" or "longest") -> (who, heads) -> microseconds, where all sequences are as long and bring one token."""
    found: dict[int, dict[tuple[str, int], float]] = {}
    for row in record.rows:
        here = {"page": PAGE, "tokens": 1, "shortest": row["longest"]} | same
        if row["Hq"] in HEADS and row["name"] in (*KERNELS, "copy") and all(row[key] == here[key] for key in here):
            found.setdefault(row[size], {})[row["name"], row["Hq"]] = row["us"]
    return dict(sorted(found.items()))


def _times(axes, times, words: str) -> None:
    for name, colour in KERNELS.items():
        for heads, marker in HEADS.items():
            some = [(size, here[name, heads]) for size, here in times.items() if (name, heads) in here]
            if some:
                axes.plot(*zip(*some, strict=True), f"-{marker}", color=LIGHT[colour], ms=5, lw=1.1, mew=1.3,
                          mfc=LIGHT[colour] if name == "gluon" else "none", label=f"{name}, {heads} heads")  # fmt: skip
    copies = [(size, min(us for (name, _), us in here.items() if name == "copy")) for size, here in times.items()]
    axes.plot(*zip(*copies, strict=True), color=LIGHT["muted"], lw=1.2, ls=(0, (4, 3)), label="a copy")
    axes.set(xscale="log", yscale="log", xlabel=words)
    axes.set_xticks(list(times), [f"{size:,}" for size in times])
    axes.set_yticks([10, 100, 1000], ["10", "100", "1,000"])
    axes.minorticks_off()
    axes.grid(axis="both")


def _in_words(times, words: str) -> list[str]:
    said = []
    for size, here in times.items():
        each = ", ".join(
            f"{name} with {heads} heads {seconds_in_words(us * 1e-6)}"
            for (name, heads), us in here.items()
            if name in KERNELS
        )
        copy = min(us for (name, _), us in here.items() if name == "copy")
        said.append(f"{words.format(f'{size:,}')}: {each}, a copy {seconds_in_words(copy * 1e-6)}.")
    return said
