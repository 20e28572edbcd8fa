"""The stepper of lesson 14: experts' loads, batch after batch, behind a router that was trained without balancing.

What goes by are the corpus' tokens as the trained model has them in one of its layers. A bias, or a balance loss, can
be switched on, and the loads seen to even out.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from llmsys.moe import RouterConfig, balance_loss, move_bias
from llmsys.viz.kit.controls import Choice
from llmsys.viz.kit.stepper import Stepper
from llmsys.viz.kit.svg import Svg
from llmsys.viz.mixture_of_experts.stream import Frame, stream

RATES = {"off": 0.0, "γ = 0.003": 0.003, "γ = 0.01": 0.01, "γ = 0.03": 0.03}
LOSSES = {"off": "", "by batch": "batch", "by sequence": "sequence"}
WIDE, BASE, HIGH, MOST = 520, 196, 124, 4.0
"""Pixels of all bars together, where they stand, how high they may be, and for how many times the mean."""
LINE = 560


def stepper(
    batches: Sequence[tuple[str, Tensor]],
    weight: Tensor,
    config: RouterConfig,
    *,
    move: Callable = move_bias,
    balance: Callable = balance_loss,
) -> Stepper:
    """Step through the batches. Arguments as `stream`'s; `move` and `balance` may be the reader's own."""

    def frames(rate: float, loss: str) -> list[Frame]:
        return stream(batches, weight, config, rate=rate, loss=loss, move=move, balance=balance)

    return Stepper(
        frames,
        draw,
        title="Loads behind a trained router",
        describe=describe,
        controls=[
            Choice("rate", "Bias", RATES, start=0.01),
            Choice("loss", "Loss", LOSSES),
        ],
        static=-1,
        interval=350,
        keep_place=True,
    )


def draw(frame: Frame) -> Svg:
    svg = Svg(760, 262, alt=describe(frame))
    svg.text(0, 18, [("reads ", "muted"), (frame.text, "mono small")])
    whose = [(" · in the batch", "blue"), (" · in its first sequence", "orange"), (" · over 2×", "purple")]
    svg.text(0, 44, [("load of each expert", "bold"), *whose])
    E = len(frame.loads)
    step = WIDE / E
    for e, (load, of_one) in enumerate(zip(frame.loads, frame.of_one, strict=True)):
        x, high, inner = 28 + step * e, HIGH * min(load, MOST) / MOST, HIGH * min(of_one, MOST) / MOST
        svg.rect(x, BASE - high, step - 3, high, "blue" if load <= 2 else "purple", rx=1)
        svg.rect(x + step / 3 - 1, BASE - inner, step / 3 - 1, inner, "orange", rx=0)
        if load > MOST:
            svg.text(x + step / 2 - 1, BASE - HIGH - 4, f"{load:.0f}", "middle tiny")
    svg.line((24, BASE - HIGH / MOST), (28 + WIDE, BASE - HIGH / MOST), "line-ink dashed thin")
    svg.text(20, BASE - HIGH / MOST + 4, "1×", "end small muted")
    svg.text(20, BASE - HIGH + 4, f"{MOST:g}×", "end small muted")
    _bias(svg, frame, step)
    _history(svg, frame)
    return svg


def _bias(svg: Svg, frame: Frame, step: float) -> None:
    middle, largest = BASE + 38, max(0.05, *(abs(each) for each in frame.bias))
    svg.line((24, middle), (28 + WIDE, middle), "line-rule thin")
    svg.text(20, middle + 4, "b", "end small muted")
    for e, each in enumerate(frame.bias):
        high = 20 * abs(each) / largest
        svg.rect(28 + step * e, middle - high if each > 0 else middle, step - 3, high, "green", rx=0)
    if any(frame.bias):
        svg.text(32 + WIDE, middle - 14, f"±{largest:.2g}", "small muted")


def _history(svg: Svg, frame: Frame) -> None:
    wide, many = 760 - LINE - 12, len(frame.busiest)
    top = max(MOST, max(frame.busiest))
    svg.text(LINE + 22, 62, [("busiest", "bold"), (" × mean", "muted")], "small")
    step = (wide - 22) / max(many - 1, 1)
    points = [(LINE + 22 + step * n, BASE - HIGH * load / top) for n, load in enumerate(frame.busiest)]
    svg.line((LINE + 22, BASE - HIGH / top), (LINE + wide, BASE - HIGH / top), "line-ink dashed thin")
    svg.line((LINE + 22, BASE), (LINE + wide, BASE), "line-rule thin")
    if many > 1:
        svg.path(points, "line-purple")
    svg.circle(*points[-1], 3, "purple")
    svg.text(LINE + wide, BASE + 16, f"{frame.busiest[-1]:.2f} in batch {many}", "end small")


def describe(frame: Frame) -> str:
    idle = sum(load == 0 for load in frame.loads)
    return (
        f"After batch {len(frame.busiest)} the busiest of {len(frame.loads)} experts has {frame.busiest[-1]:.2f} times "
        f"the mean load, and in a sequence by itself {frame.of_sequences:.2f} times. {idle} have nobody. "
        f"{frame.own_choice:.0%} of the choices are those of the scores alone; the scores have moved by "
        f"{frame.moved:.3f}."
    )
