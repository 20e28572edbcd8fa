"""The stepper of lesson 05: the tiled backward pass, pair of tiles by pair of tiles.

The walk is that of `llmsys.attention.backward.backward_tiled`: a tile of keys outside, the queries that see it inside.
A pair of tiles takes three steps: P again and dV; dP and dS; dK and dQ.
"""

from dataclasses import dataclass

from llmsys.viz.kit.controls import Choice
from llmsys.viz.kit.stepper import Stepper
from llmsys.viz.kit.svg import Svg

D, ITEMSIZE = 16, 4
MAP, LEFT, TOP = 196, 116, 92  # the matrix in pixels, and where it is
CHIP = 420
LENGTHS = {"48": (48, 48), "44, ragged": (44, 44), "24 queries, 48 keys": (24, 48)}


@dataclass(frozen=True)
class Step:
    """One step of the walk. `i` and `j` are the first query and the first key of the pair of tiles at work."""

    Tq: int
    Tk: int
    block_q: int
    block_k: int
    causal: bool
    kind: str
    """"keys": load K and V; "weights": P and dV; "scores": dP and dS; "sums": dK and dQ; "store": dK and dV."""
    j: int
    i: int | None
    done: frozenset[tuple[int, int]]
    """Pairs (i, j) that have been used and forgotten."""
    stored: frozenset[int]
    """Tiles of keys whose dK and dV are in memory."""

    @property
    def rows(self) -> int:
        """How many queries the tile at work has."""
        return min(self.block_q, self.Tq - self.i)

    @property
    def keys(self) -> int:
        """How many keys the tile at work has."""
        return min(self.block_k, self.Tk - self.j)


def stepper(causal: bool = False, tile: str = "16 × 16") -> Stepper:
    """Step through the backward pass of one small head: what is loaded, what is made again, which sums grow."""
    return Stepper(
        steps,
        draw,
        title="The backward pass, tile by tile",
        describe=describe,
        controls=[
            Choice("causal", "Causal", {"no": False, "yes": True}, causal),
            Choice("tile", "Tile", {t: t for t in ("16 × 16", "8 × 16", "16 × 24")}, tile),
            Choice("length", "Length", {name: name for name in LENGTHS}),
        ],
        static=lambda frames: next(n for n in range(len(frames) // 2, len(frames)) if frames[n].kind == "scores"),
        interval=900,
    )


def steps(causal: bool, tile: str, length: str = "48") -> list[Step]:
    """All steps for these choices of the controls, in the order in which `backward_tiled` takes them."""
    (Tq, Tk), (block_q, block_k) = LENGTHS[length], (int(n) for n in tile.split(" × "))
    done: set[tuple[int, int]] = set()
    stored: set[int] = set()
    found: list[Step] = []

    def add(kind: str, j: int, i: int | None = None) -> None:
        found.append(Step(Tq, Tk, block_q, block_k, causal, kind, j, i, frozenset(done), frozenset(stored)))

    for j in range(0, Tk, block_k):
        add("keys", j)
        first = max(j - (Tk - Tq), 0) if causal else 0
        for i in range(first // block_q * block_q, Tq, block_q):
            add("weights", j, i)
            add("scores", j, i)
            done.add((i, j))
            add("sums", j, i)
        stored.add(j)
        add("store", j)
    return found


def describe(step: Step) -> str:
    """The caption of a step: what is loaded, computed or stored."""
    keys = f"keys {step.j}–{step.j + step.keys - 1}"
    if step.kind == "keys":
        return f"Load K and V of {keys}; their dK and dV begin at 0."
    if step.kind == "store":
        return f"Every query that sees {keys} has gone by: store their dK and dV."
    pair = f"queries {step.i}–{step.i + step.rows - 1} and {keys}"
    return {
        "weights": f"P of {pair} is made again from the scores and lse, and dV takes its share.",
        "scores": f"dP = dO Vᵀ, and dS = P ∘ (dP − δ), of {pair}.",
        "sums": f"dK takes its share of {pair}; so does dQ, in memory. Then P, dP and dS are forgotten.",
    }[step.kind]


def draw(step: Step) -> Svg:
    """A step as a picture: the matrix in tiles (left), what is on the chip (right)."""
    svg = Svg(760, 342, alt="")
    _map(svg, step)
    _chip(svg, step)
    return svg


def _map(svg: Svg, step: Step) -> None:
    unit = MAP / max(step.Tq, step.Tk)
    width, height = step.Tk * unit, step.Tq * unit
    svg.text(LEFT, 14, "in memory", "bold")
    for row, names in enumerate(("k, v", "dk, dv")):
        y = 26 + 30 * row
        svg.text(LEFT - 10, y + 16, names, "end bold")
        for j in range(0, step.Tk, step.block_k):
            w = (min(j + step.block_k, step.Tk) - j) * unit
            hot = j == step.j and step.kind == ("keys", "store")[row]
            hue = "orange" if hot else "blue-soft" if row == 0 else "green-soft" if j in step.stored else "panel"
            svg.rect(LEFT + j * unit + 0.5, y, w - 1, 22, hue, rx=2)
            if row == 0 and j == step.j:  # on the chip
                svg.rect(LEFT + j * unit + 0.5, y, w - 1, 22, "line-ink", rx=2)
    svg.text(LEFT - 32, TOP + height + 16, "q, dO, lse, δ", "middle bold")
    svg.text(LEFT + width + 26, TOP + height + 16, "dq", "middle bold")
    pairs = _pairs(step)
    for i in range(0, step.Tq, step.block_q):
        h = (min(i + step.block_q, step.Tq) - i) * unit
        y = TOP + i * unit + 0.5
        hot = i == step.i
        for x, w in ((LEFT - 62, 22), (LEFT - 38, 22), (LEFT - 14, 3), (LEFT - 9, 3)):
            svg.rect(x, y, w, h - 1, "orange" if hot and step.kind == "weights" else "blue-soft", rx=1)
        added, needed = (sum(pair[0] == i for pair in each) for each in (step.done, pairs))
        hue = "orange" if hot and step.kind == "sums" else "green-soft" if added == needed else "panel"
        svg.rect(LEFT + width + 14, y, 24, h - 1, hue, rx=2)
        svg.text(LEFT + width + 44, y + h / 2 + 3, f"{added} of {needed}", "small")
    for i in range(0, step.Tq, step.block_q):
        for j in range(0, step.Tk, step.block_k):
            w, h = (min(j + step.block_k, step.Tk) - j) * unit, (min(i + step.block_q, step.Tq) - i) * unit
            x, y = LEFT + j * unit, TOP + i * unit
            now = (i, j) == (step.i, step.j)
            svg.rect(x + 0.5, y + 0.5, w - 1, h - 1, "orange" if now else "panel", rx=2)
            if (i, j) not in pairs:
                svg.text(x + w / 2, y + h / 2 + 4, "·", "middle muted")
            elif now:
                svg.text(x + w / 2, y + h / 2 + 4, "P", "middle small bold on")
            elif (i, j) in step.done:
                svg.text(x + w / 2, y + h / 2 + 4, "✓", "middle small muted")
    svg.text(LEFT, TOP + height + 34, "ticks: made, used, forgotten" + ("; dots: skipped" if step.causal else ""),
             "small muted")  # fmt: skip


def _chip(svg: Svg, step: Step) -> None:
    svg.rect(CHIP, 4, 340, 250, "panel", rx=8)
    svg.text(CHIP + 14, 26, "on the chip", "bold")
    walking = step.kind in ("weights", "scores", "sums")
    added = sum(pair[1] == step.j for pair in step.done)
    needed = sum(pair[1] == step.j for pair in _pairs(step))
    sums = step.keys * D * ITEMSIZE
    _box(svg, 0, 0, "K, V", f"{2 * sums:,} B", "orange-soft" if step.kind == "keys" else "blue-soft")
    if walking:
        loaded = 2 * step.rows * (D + 1) * ITEMSIZE
        _box(svg, 0, 1, "Q, dO, lse, δ", f"{loaded:,} B", "orange-soft" if step.kind == "weights" else "blue-soft")
        tile = step.rows * step.keys * ITEMSIZE
        made = {"weights": ("S, P",), "scores": ("P", "dP, dS"), "sums": ("dS",)}[step.kind]
        for n, name in enumerate(made):
            count = 2 if ", " in name else 1
            new = n == len(made) - 1 and step.kind != "sums"
            _box(svg, 1, n, name, f"{count * tile:,} B", "orange-soft" if new else "purple-soft")
    for n, (name, grows) in enumerate((("dV", "weights"), ("dK", "sums"))):
        got = added + (name == "dV" and step.kind in ("weights", "scores"))
        hue = "orange-soft" if step.kind == grows else "green-soft"
        _box(svg, 2, n, name, f"{got} of {needed} shares", hue)
    formula = {
        "keys": ("dK = 0,  dV = 0",),
        "weights": ("S = scale · Q Kᵀ,  P = e^{S − lse}", "dV ← dV + Pᵀ dO"),
        "scores": ("dP = dO Vᵀ", "dS = P ∘ (dP − δ)"),
        "sums": ("dK ← dK + dSᵀ Q", "dQ ← dQ + dS K,  in memory"),
        "store": ("dk = scale · dK,  dv = dV",),
    }[step.kind]
    for n, line in enumerate(formula):
        svg.text(CHIP + 14, 210 + 24 * n, line, "bold orange")
    whole = step.Tq * step.Tk * ITEMSIZE
    tile = step.block_q * step.block_k * ITEMSIZE
    for n, (name, size, hue) in enumerate((("a tile of P", tile, "orange"), ("all of P", whole, "muted"))):
        y = 276 + 26 * n
        svg.text(CHIP + 80, y + 13, name, "end small")
        svg.rect(CHIP + 90, y, 170 * size / whole, 18, hue, rx=2)
        svg.text(CHIP + 96 + 170 * size / whole, y + 13, f"{size:,} B", "small")


def _box(svg: Svg, column: int, row: int, name: str, note: str, hue: str) -> None:
    x, y = CHIP + 14 + 106 * column, 42 + 66 * row
    svg.rect(x, y, 100, 54, hue, rx=4)
    svg.text(x + 50, y + 24, name, "middle bold")
    svg.text(x + 50, y + 42, note, "middle small")


def _pairs(step: Step) -> set[tuple[int, int]]:
    """The pairs (i, j) of tiles in which some query sees some key: all, or those that the causal mask leaves."""
    offset = step.Tk - step.Tq
    return {
        (i, j)
        for i in range(0, step.Tq, step.block_q)
        for j in range(0, step.Tk, step.block_k)
        if not step.causal or j <= min(i + step.block_q, step.Tq) - 1 + offset
    }
