"""The time of a decode step against its batch: measured, and as the roofline has it.

Points are rows of `llmsys bench decode`, lines the predictions in the same rows. A batch that did not fit is a cross,
where the prediction would have it.
"""

import re
from collections.abc import Mapping, Sequence

from llmsys.models.decode_cost import bytes_per_token, decode_step, weights_of_step
from llmsys.models.shapes import SHAPES
from llmsys.viz.kit.numbers import number
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

SERIES = (("blue", "o"), ("orange", "s"), ("purple", "^"), ("green", "D"))
"""Colour and marker of each context, from the shortest."""
PARTS = (("rest_ms", "the rest (weights)", "blue", "o"), ("attention_ms", "attention (cache)", "orange", "s"))
MISSING = re.compile(r"(?P<name>.+) at batch (?P<batch>\d+), context (?P<context>\d+)")


def decode_time(
    record, *, here: Sequence[dict] | None = None, model: str | None = None, contexts: Sequence[int] | None = None
) -> Picture:
    """Milliseconds a token against batch, a line a context; and beside that a step in its two parts, at one context.

    record      a `llmsys.bench.Record` of the decode benchmark, or its rows
    here        rows of this machine, drawn below the record's
    model       whose rows are drawn: by default the record's first, and of `here` the first there
    contexts    those to draw, by default all (at most four)

    Time a token is that of a step divided by its batch. Raises ValueError where there are no such rows.
    """
    import matplotlib.pyplot as plt

    device = getattr(record, "device", "recorded").removeprefix("NVIDIA ")
    sources = [(device, _chosen(getattr(record, "rows", record), "record", model, contexts))]
    full = [_out_of_memory(getattr(record, "missing", {}), sources[0][1])]
    if here:
        own = model if any(row["name"] == model for row in here) else None
        sources.append(("this machine", _chosen(here, "here", own, None)))
        full.append({})
    with chart_style():
        figure, panels = plt.subplots(
            len(sources), 2, figsize=(7.6, 3.5 * len(sources)), squeeze=False, width_ratios=(1.15, 1)
        )
        for (left, right), (where, rows), missing in zip(panels, sources, full, strict=True):
            _a_token(left, rows, missing)
            left.set(title=f"{rows[0]['name']}, {where}: a token", ylabel="ms a token (step / batch)")
            context = _one_context(rows)
            _a_step(right, [row for row in rows if row["context"] == context])
            right.set(title=f"a step of {context:,} tokens each", ylabel="ms a step")
            for axes in (left, right):
                _batches(axes, {row["batch"] for row in rows} | {batch for _, batch in missing})
    said = " ".join(
        _in_words(where, rows, missing) for (where, rows), missing in zip(sources, full, strict=True)
    )
    return chart(figure, alt=f"Time of decoding against batch, measured and by the roofline. {said}")


def _chosen(rows: Sequence[dict], argument: str, model: str | None, contexts: Sequence[int] | None) -> list[dict]:
    names = list(dict.fromkeys(row["name"] for row in rows if "predicted_ms" in row))
    model = model or (names[0] if names else None)
    found = [row for row in rows if row["name"] == model and (contexts is None or row["context"] in contexts)]
    if not found or model not in names:
        at = f" at context {', '.join(map(str, contexts))}" if contexts else ""
        there = f"; it has {', '.join(names)}" if names else ""
        raise ValueError(f"{argument} has no decode rows of {model or 'any model'}{at}{there}: take recorded('decode')")
    there = sorted({row["context"] for row in found})
    if len(there) > len(SERIES):
        raise ValueError(f"at most {len(SERIES)} contexts can be told apart, got {there}: choose some with contexts=")
    return sorted(found, key=lambda row: (row["context"], row["batch"]))


def _out_of_memory(missing: Mapping[str, str], rows: Sequence[dict]) -> dict[tuple[int, int], float]:
    """(context, batch) of what did not fit -> the milliseconds a step would take by the roofline."""
    first, found = rows[0], {}
    for what, why in missing.items():
        match = MISSING.match(what)
        if not match or "out of memory" not in why or match["name"] != first["name"] or first["name"] not in SHAPES:
            continue
        batch, context = int(match["batch"]), int(match["context"])
        if context in {row["context"] for row in rows}:
            shape = SHAPES[first["name"]]
            size, parameters = weights_of_step(shape, batch=batch, dtype=first["dtype"])
            step = decode_step(
                batch=batch, context=context, parameters=parameters, weight_bytes=size,
                bytes_per_token=bytes_per_token(shape, first["dtype"]),
                bandwidth=first["bandwidth"], peak_flops=first["peak_flops"],
            )  # fmt: skip
            found[context, batch] = 1e3 * step.seconds
    return found


def _one_context(rows: Sequence[dict]) -> int:
    """The context with the most batches, of these the longest."""
    count = {row["context"]: 0 for row in rows}
    for row in rows:
        count[row["context"]] += 1
    return max(count, key=lambda context: (count[context], context))


def _a_token(axes, rows: Sequence[dict], missing: Mapping[tuple[int, int], float]) -> None:
    for context, (colour, marker) in zip(sorted({row["context"] for row in rows}), SERIES, strict=False):
        line = [row for row in rows if row["context"] == context]
        batches = [row["batch"] for row in line]
        over = [(batch, ms / batch) for (tokens, batch), ms in sorted(missing.items()) if tokens == context]
        predicted = list(zip(batches, [row["predicted_ms"] / row["batch"] for row in line], strict=True)) + over
        axes.plot(*zip(*predicted, strict=True), color=LIGHT[colour], lw=1.2, ls=(0, (4, 3)))
        axes.plot(batches, [row["ms"] / row["batch"] for row in line], marker, color=LIGHT[colour],
                  label=f"{context:,} tokens")  # fmt: skip
        if over:
            axes.plot(*zip(*over, strict=True), "x", ms=8, mew=2, color=LIGHT[colour])
    if missing:
        axes.plot([], [], "x", ms=7, mew=2, color=LIGHT["muted"], label="out of memory")
    axes.plot([], [], color=LIGHT["muted"], lw=1.2, ls=(0, (4, 3)), label="roofline")
    axes.legend(frameon=False, loc="upper right", fontsize=8.5)


def _a_step(axes, rows: Sequence[dict]) -> None:
    for key, name, colour, marker in PARTS:
        # Attention is a difference of two times, and can be below 0 where it is small.
        measured = [(row["batch"], row[key]) for row in rows if row[key] and row[key] > 0]
        predicted = [(row["batch"], row[f"predicted_{key}"]) for row in rows]
        axes.plot(*zip(*predicted, strict=True), color=LIGHT[colour], lw=1.2, ls=(0, (4, 3)))
        if measured:
            axes.plot(*zip(*measured, strict=True), marker, color=LIGHT[colour], label=name)
    axes.legend(frameon=False, loc="lower right", fontsize=8.5)


def _batches(axes, batches: set[int]) -> None:
    """Make both axes logarithmic; a tick for each batch, and round numbers of milliseconds."""
    axes.set(xscale="log", yscale="log", xlabel="batch")
    axes.set_xticks(sorted(batches), [str(batch) for batch in sorted(batches)])
    low, high = axes.get_ylim()
    digits = (1,) if high / low > 1000 else (1, 2, 5)
    ticks = [d * 10.0**p for p in range(-6, 7) for d in digits if low <= d * 10.0**p <= high]
    axes.set_yticks(ticks, [f"{tick:,g}" if tick < 1e4 else f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="y")


def _in_words(where: str, rows: Sequence[dict], missing: Mapping[tuple[int, int], float]) -> str:
    said = []
    for context in sorted({row["context"] for row in rows}):
        line = [row for row in rows if row["context"] == context]
        ends = " to ".join(
            f"{number(row['ms'] / row['batch'])} ms a token at batch {row['batch']:,} "
            f"(predicted {number(row['predicted_ms'] / row['batch'])})"
            for row in (line[0], line[-1])[: len(line)]
        )
        over = [str(batch) for tokens, batch in sorted(missing) if tokens == context]
        said.append(f"{context:,} tokens: {ends}" + (f", out of memory at {', '.join(over)}" if over else ""))
    return f"{rows[0]['name']} on {where}, with {'; with '.join(said)}."
