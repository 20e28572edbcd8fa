"""Which keys each query sees where there are fewer queries than keys: two alignments of a causal mask.

Nothing here says what a mask does: both functions are run on values that are an identity matrix, so that an output's
column is the weight of a key, and what is not 0 was seen.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from llmsys.attention.naive import naive_attention
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

PANEL, LEFT, TOP = 380, 74, 66
LARGEST = 12


def causal_alignment(Tq: int = 3, Tk: int = 7) -> Picture:
    """The keys that each of `Tq` new queries sees of `Tk` keys: aligned bottom-right, and top-left as in torch.

    Raises ValueError unless 1 <= Tq <= Tk <= 12.
    """
    if not 1 <= Tq <= Tk <= LARGEST:
        raise ValueError(f"Tq and Tk must be 1 <= Tq <= Tk <= {LARGEST}, got {Tq} and {Tk}")
    right, wrong = seen(Tq, Tk, align="bottom-right"), seen(Tq, Tk, align="top-left")
    cell = min(36.0, (PANEL - LEFT - 12) / Tk, 190 / Tq)
    hidden = int((right & ~wrong).sum())
    svg = Svg(2 * PANEL, TOP + Tq * cell + 60, alt=(
        f"{Tq} new queries, at the end of {Tk} tokens. Bottom-right alignment, causal=True here: {_in_words(right)}. "
        f"Top-left alignment, torch's is_causal=True: {_in_words(wrong)}; {hidden} pairs are wrongly hidden."
    ))  # fmt: skip
    good = "each query sees itself and all before"
    _panel(svg, 0, right, right, cell, "bottom-right", "causal=True in this library", good)
    same = "with as many queries as keys it is the same"
    tail = f"{hidden} pairs of query and key are wrongly hidden" if hidden else same
    _panel(svg, PANEL, wrong, right, cell, "top-left", "is_causal=True in torch", tail)
    return svg.picture()


def seen(Tq: int, Tk: int, *, align: str) -> Tensor:
    """Which key each query sees, bool (Tq, Tk), as the library ("bottom-right") or torch ("top-left") computes it."""
    q, k, v = torch.zeros(1, 1, Tq, Tk), torch.zeros(1, 1, Tk, Tk), torch.eye(Tk).view(1, 1, Tk, Tk)
    if align == "bottom-right":
        return naive_attention(q, k, v, causal=True)[0, 0] > 0
    return scaled_dot_product_attention(q, k, v, is_causal=True)[0, 0] > 0


def _panel(svg: Svg, left: float, mask: Tensor, right: Tensor, cell: float, name: str, how: str, tail: str) -> None:
    """One mask: keys from left to right, queries from top to bottom, both with their positions in the sequence."""
    Tq, Tk = mask.shape
    x0 = left + LEFT
    svg.text(left, 16, [(name, "bold"), (f" · {how}", "muted")])
    svg.text(x0 - 8, TOP - 22, "key", "end small muted")
    svg.text(x0 - 8, TOP - 6, "query", "end small muted")
    for key in range(Tk):
        svg.text(x0 + (key + 0.5) * cell, TOP - 22, str(key), "middle small muted")
    for row in range(Tq):
        y = TOP + row * cell
        svg.text(x0 - 8, y + cell / 2 + 4, str(Tk - Tq + row), "end small bold purple")
        for key in range(Tk):
            x, shown, wanted = x0 + key * cell, bool(mask[row, key]), bool(right[row, key])
            hue = "blue" if shown else "orange-soft" if wanted else "panel"
            svg.rect(x + 1, y + 1, cell - 2, cell - 2, hue, rx=2)
            if key == Tk - Tq + row:  # itself
                svg.rect(x + 1, y + 1, cell - 2, cell - 2, "line-purple thick", rx=2)
            if wanted and not shown and cell >= 14:
                svg.text(x + cell / 2, y + cell / 2 + 4, "×", "middle bold")
    good = bool((mask == right).all())
    y = TOP + Tq * cell
    svg.text(x0, y + 20, tail, f"small bold {'green' if good else 'orange'}")
    if left == 0:
        svg.text(x0, y + 42, "blue: seen; purple frame: the query's own key", "small muted")
    elif not good:
        svg.text(x0, y + 42, "×: must be seen, and is not", "small muted")


def _in_words(mask: Tensor) -> str:
    Tq, Tk = mask.shape
    rows = [row.nonzero().flatten().tolist() for row in mask]
    return "; ".join(
        f"query {Tk - Tq + n} sees " + (f"keys 0 to {keys[-1]}" if len(keys) > 1 else f"key {keys[0]} only")
        for n, keys in enumerate(rows)
    )
