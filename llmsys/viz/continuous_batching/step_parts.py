"""What a decode step is made of, and what comes of it: rows of `llmsys bench serving`.

Each way to execute a step has a line: everything off, each part off in turn, everything on. On the left a step's
milliseconds, in attention, the other kernels and the time in which the GPU has nothing to do; on the right tokens a
second. A dashed line says what reading alone would take.
"""

from collections.abc import Sequence

from llmsys.viz.kit.numbers import number
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

PARTS = (
    ("attention_ms", "attention", "blue", ""),
    ("other_ms", "other kernels", "orange", ""),
    ("idle_ms", "nothing", "rule", "////"),
)
"""Of a row: its key, what it is called, its colour and hatching."""
REST = ("rest", "other kernels, and nothing", "orange-soft", "////")
"""What is left where nobody could tell the two apart."""
BATCHES = (("full batch", "throughput"), ("one request", "one"))
"""The batch of a step's rows, and the sweep whose tokens a second stand beside it."""


def step_parts(record, *, model: str | None = None) -> Picture:
    """Steps of a full batch, and of one request, in their parts; and beside them tokens a second.

    record    a `llmsys.bench.Record` of the serving benchmark, or its rows
    model     whose rows are drawn; by default the record's first

    Raises ValueError where there are no such rows.
    """
    import matplotlib.pyplot as plt

    rows = getattr(record, "rows", record)
    steps, model = _steps(rows, model)
    device = getattr(record, "device", "recorded").removeprefix("NVIDIA ")
    lines = max(len(found) for found in steps.values())
    with chart_style():
        figure, panels = plt.subplots(
            len(steps), 2, figsize=(7.6, (0.9 + 0.27 * lines) * len(steps) + 0.3), squeeze=False, width_ratios=(1.45, 1)
        )
        for (left, right), (batch, found) in zip(panels, steps.items(), strict=True):
            sweep = dict(BATCHES)[batch]
            speeds = {row["name"]: row for row in rows if row["sweep"] == sweep and row["model"] == model}
            _parts(left, found)
            left.set_title(f"{_who(found[0])}: ms of a step")
            _speeds(right, [speeds.get(row["name"]) for row in found])
            right.set_title("tokens/s, whole answers")
        handles, labels = _legend(plt, {part[0] for found in steps.values() for row in found for part in _known(row)})
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8.5)
    said = " ".join(_in_words(rows, batch, found, model) for batch, found in steps.items())
    return chart(figure, alt=f"What a decode step of {model} is made of on {device}. {said}")


def _steps(rows: Sequence[dict], model: str | None) -> tuple[dict[str, list[dict]], str]:
    """Batch -> its steps, first with everything off, last with everything on; and the model."""
    models = list(dict.fromkeys(row["model"] for row in rows if row["sweep"] == "step"))
    model = model or (models[0] if models else None)
    found = {}
    for batch, _ in BATCHES:
        here = {row["name"]: row for row in rows
                if row["sweep"] == "step" and row["model"] == model and row["batch"] == batch}  # fmt: skip
        if here:
            between = [name for name in here if name not in ("all off", "all on")]
            found[batch] = [here[name] for name in ("all off", *between, "all on") if name in here]
    if not found:
        there = f"; it has {', '.join(models)}" if models else ""
        raise ValueError(f"record has no steps of {model or 'any model'}{there}: take recorded('serving', 'H200')")
    return found, model


def _known(row: dict) -> list[tuple[str, str, str, str, float]]:
    """The parts of a step as far as they were told apart, each with its milliseconds."""
    known = [(*part, row[part[0]]) for part in PARTS if row[part[0]] is not None]
    rest = row["ms"] - sum(part[-1] for part in known)
    return known if len(known) == len(PARTS) else [*known, (*REST, rest)]


def _parts(axes, found: Sequence[dict]) -> None:
    for y, row in enumerate(reversed(found)):
        start = 0.0
        for _, _, colour, hatch, ms in _known(row):
            axes.barh(y, ms, left=start, height=0.72, color=LIGHT["surface"] if hatch else LIGHT[colour], hatch=hatch,
                      edgecolor=LIGHT["muted"] if hatch else LIGHT["surface"], lw=0.5)  # fmt: skip
            start += ms
        _beside(axes, start, y, number(row["ms"]))
    axes.axvline(found[0]["roofline_ms"], color=LIGHT["purple"], lw=1.4, ls=(0, (4, 3)))
    axes.set_yticks(range(len(found)), [_called(row["name"]) for row in reversed(found)], fontsize=8.5)
    axes.set(xlim=(0, 1.14 * max(row["ms"] for row in found)))
    _bare(axes)


def _speeds(axes, found: Sequence[dict | None]) -> None:
    known = [row for row in found if row is not None]
    for y, row in enumerate(reversed(found)):
        if row is None:
            _beside(axes, 0, y, "not measured", "muted")
            continue
        axes.barh(y, row["tokens_per_s"], height=0.72, color=LIGHT["green"])
        _beside(axes, row["tokens_per_s"], y, f"{row['tokens_per_s']:,.0f}")
    if known:
        most = known[-1]["roofline_tokens_per_s"]  # of slow ways, the answers may be shorter
        axes.axvline(most, color=LIGHT["purple"], lw=1.4, ls=(0, (4, 3)))
        axes.set(xlim=(0, 1.08 * max(most, *(row["tokens_per_s"] for row in known))))
    axes.set_yticks([])
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    _bare(axes)


def _beside(axes, x: float, y: float, text: str, colour: str = "ink") -> None:
    axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", fontsize=8.5, color=LIGHT[colour])


def _bare(axes) -> None:
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _legend(plt, keys: set[str]):
    handles, labels = [], []
    for key, name, colour, hatch in (*PARTS, REST):
        if key in keys:
            handles.append(plt.Rectangle((0, 0), 1, 1, facecolor=LIGHT["surface"] if hatch else LIGHT[colour], lw=0.5,
                                         hatch=hatch, edgecolor=LIGHT["muted"]))  # fmt: skip
            labels.append(name)
    handles.append(plt.Line2D([], [], color=LIGHT["purple"], lw=1.4, ls=(0, (4, 3))))
    return handles, [*labels, "reading alone"]


def _called(name: str) -> str:
    return name.replace("_", " ")


def _who(row: dict) -> str:
    return f"{row['sequences']:,} requests" if row["sequences"] > 1 else "one request"


def _in_words(rows: Sequence[dict], batch: str, found: Sequence[dict], model: str) -> str:
    speeds = {row["name"]: row for row in rows if row["sweep"] == dict(BATCHES)[batch] and row["model"] == model}
    said = []
    for row in found:
        parts = ", ".join(f"{name} {number(ms)}" for _, name, _, _, ms in _known(row))
        speed = speeds.get(row["name"])
        tokens = f"; {speed['tokens_per_s']:,.0f} tokens a second" if speed else ""
        said.append(f"{_called(row['name'])} {number(row['ms'])} ms ({parts}){tokens}")
    least = f"reading alone takes {number(found[0]['roofline_ms'])} ms"
    return f"{_who(found[0]).capitalize()}, {least}: {'. '.join(said)}."
