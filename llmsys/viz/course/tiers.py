"""The three tiers that every lesson runs on, and which of them this machine is."""

from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

TIERS = {
    "pytorch": ("PyTorch", "on a CPU", "every idea, in plain tensors"),
    "interpreter": ("Triton, interpreted", "on a CPU", "look inside a GPU kernel"),
    "gpu": ("Triton, compiled", "on a GPU", "the same kernel, at full speed"),
}


def tiers(tier: str) -> Picture:
    """The three tiers, and which of them this machine is: "pytorch", "interpreter" or "gpu".

    Raises ValueError for another.
    """
    if tier not in TIERS:
        raise ValueError(
            f"tier must be one of {', '.join(map(repr, TIERS))}, as llmsys.hardware.tier.tier() says; got {tier!r}"
        )
    best = list(TIERS).index(tier)
    name, where, _ = TIERS[tier]
    others = [f"{n} {w}: {what}" for n, w, what in TIERS.values()]
    svg = Svg(760, 168, alt=f"Three tiers. {'. '.join(others)}. The best on this machine: {name} {where}.")
    svg.rect(250, 2, 260, 30, "panel", rx=6)
    svg.text(380, 22, "one notebook, one kernel", "middle bold")
    for i, (title, where, what) in enumerate(TIERS.values()):
        x, reached = 4 + i * 256, i <= best
        svg.curve((380, 32), (x + 120, 60), "line-blue thick" if i == best else "line-rule")
        if reached:
            svg.rect(x, 60, 240, 78, "blue-soft" if i == best else "panel", rx=8)
        svg.rect(
            x, 60, 240, 78, "line-blue thick" if i == best else "line-rule" if reached else "line-rule dashed", rx=8
        )
        ink = "" if reached else "muted"
        svg.text(x + 120, 84, title, f"middle bold {ink}")
        svg.text(x + 120, 103, where, f"middle small {ink}")
        svg.text(x + 120, 124, what, f"middle small {ink}")
        said = "this machine" if i == best else "here, too" if reached else "not on this machine"
        svg.text(x + 120, 158, said, "middle bold blue" if i == best else "middle small muted")
    return svg.picture()
