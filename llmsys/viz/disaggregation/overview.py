"""The opening picture of lesson 11: somebody is answered while prompts of others come, on one GPU and on two.

Both are simulated with an H200's recorded step times, and a bar is a step of an engine's log.
"""

from llmsys.bench.goodput import MISTRAL_7B, recorded_times
from llmsys.models.decode_cost import bytes_per_token
from llmsys.serving.simulator import Cluster, Placement, Transfer
from llmsys.serving.telemetry.events import Event, EventLog, StepDone, Token
from llmsys.serving.workload import Arrival
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

STREAM = (Arrival(0.0, 200, 48), Arrival(0.06, 2048, 2), Arrival(0.19, 2048, 2))
"""Somebody who reads an answer, and two long prompts."""
END = 0.32
LEFT, RIGHT = 96, 752
COLOURS = {"decode": "blue", "prefill": "orange", "mixed": "purple"}


def overview() -> Picture:
    """On one GPU an answer stands still while prompts are read; on two it does not."""
    together, apart = served(Placement(colocated=1)), served(Placement(prefill=1, decode=1))
    waits = [1e3 * longest_wait(logs) for logs in (together, apart)]
    svg = Svg(760, 302, alt=(
        f"An answer is being written while two prompts of {STREAM[1].prompt:,} tokens come. On one GPU its tokens "
        f"stand still while prompts are read, for {waits[0]:.0f} ms at the longest. With one GPU for prompts and "
        f"another for answers the longest wait between two of its tokens is {waits[1]:.0f} ms, and every cache is "
        "sent from the one to the other."
    ))  # fmt: skip
    svg.text(0, 16, [("Colocated", "bold"), (" · one GPU does both", "muted")])
    _lane(svg, 26, "GPU", together[0])
    _tokens(svg, 64, together)
    svg.text(0, 116, [("Disaggregated", "bold"), (" · one GPU reads prompts, another one writes answers", "muted")])
    _lane(svg, 126, "prefill", apart[0])
    _lane(svg, 164, "decode", apart[1])
    _tokens(svg, 202, apart)
    for event in apart[0]:
        if isinstance(event, Token):
            svg.arrow((_x(event.time), 154), (_x(event.time) + 5, 163))
    for n in range(4):
        svg.line((_x(0.1 * n), 220), (_x(0.1 * n), 224))
        svg.text(_x(0.1 * n), 235, f"{100 * n} ms" if n else "0", "middle tiny muted")
    svg.rect(0, 246, 760, 54, "panel", rx=8)
    svg.text(14, 268, [("Longest wait of the answer between two tokens: ", "bold"),
                       f"{waits[0]:.0f} ms, and {waits[1]:.0f} ms where prompts are somebody else's."])  # fmt: skip
    x = 14.0
    for colour, words, width in (("blue", "a step of answers", 140), ("purple", "answers and a prompt", 164),
                                 ("orange", "prompts alone", 118)):  # fmt: skip
        svg.rect(x, 280, 12, 12, colour, rx=2)
        svg.text(x + 18, 290, words, "small")
        x += width
    svg.text(x, 290, "arrow: a cache is sent", "small")
    return svg.picture()


def served(placement: Placement) -> list[list[Event]]:
    """The logs of the engines."""
    logs = [EventLog() for _ in range(placement.gpus)]
    link = Transfer(bytes_per_token=bytes_per_token(MISTRAL_7B), bandwidth=50e9, latency=2e-5, layers=32)
    cluster = Cluster(placement, times=recorded_times(), num_blocks=2000, transfer=link, events=logs)
    for each in STREAM:
        cluster.add(each)
    cluster.advance()
    return [list(log) for log in logs]


def longest_wait(logs: list[list[Event]]) -> float:
    """Seconds between two tokens of the first request."""
    times = said(logs)
    return max(after - before for before, after in zip(times, times[1:], strict=False))


def said(logs: list[list[Event]]) -> list[float]:
    """When the first request's tokens came."""
    return sorted(event.time for log in logs for event in log if isinstance(event, Token) and event.request == "0")


def _x(time: float) -> float:
    return LEFT + (RIGHT - LEFT) * min(time, END) / END


def _lane(svg: Svg, y: float, name: str, log: list[Event]) -> None:
    svg.text(LEFT - 10, y + 19, name, "end small muted")
    svg.rect(LEFT, y, RIGHT - LEFT, 28, "panel", rx=2)
    for event in log:
        if isinstance(event, StepDone) and event.time - event.seconds < END:
            start, end = _x(event.time - event.seconds), _x(event.time)
            prompts = event.tokens > event.sequences
            kind = "decode" if not prompts else "mixed" if event.sequences > 1 else "prefill"
            svg.rect(start, y, max(end - start - 1, 1), 28, COLOURS[kind], rx=1)


def _tokens(svg: Svg, y: float, logs: list[list[Event]]) -> None:
    svg.text(LEFT - 10, y + 9, "its tokens", "end small muted")
    for time in said(logs):
        if time < END:
            svg.line((_x(time), y), (_x(time), y + 12), "line-ink")
