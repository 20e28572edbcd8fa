"""The stepper of lesson 11: two timelines, colocated and disaggregated, under one stream of requests."""

import math

from llmsys.bench.goodput import MISTRAL_7B, recorded_times
from llmsys.models.decode_cost import bytes_per_token
from llmsys.serving.goodput import Limits
from llmsys.serving.simulator import Transfer
from llmsys.serving.telemetry.metrics import RequestMetrics
from llmsys.viz.disaggregation.timelines import Frame, frames_of, stream
from llmsys.viz.kit.controls import Choice
from llmsys.viz.kit.stepper import Stepper
from llmsys.viz.kit.svg import Svg

COUNT = 14
PROMPT, OUTPUT = 4096, 60
LINKS = {"400 Gb/s": 50e9, "10 Gb/s": 1.25e9}
LEFT, RIGHT, ROW = 64, 640, 13
KEY = (("muted", "waits", 66), ("orange", "its prompt is read", 132), ("green-soft", "its cache is sent", 126),
       ("blue", "its answer is written", 0))  # fmt: skip


def stepper(*, ttft: float = 0.4, tpot: float = 0.008) -> Stepper:
    """Step through the lives of the same requests on two GPUs: each does both, or one reads and the other writes.

    ttft, tpot      the limits, seconds
    """
    limits, times = Limits(ttft, tpot), recorded_times()

    def frames(rate: float, bandwidth: float) -> list[Frame]:
        transfer = Transfer(
            bytes_per_token=bytes_per_token(MISTRAL_7B), bandwidth=bandwidth, latency=2e-5, layers=MISTRAL_7B.layers
        )
        workload = stream(COUNT, rate=rate, prompt=PROMPT, output=OUTPUT)
        return frames_of(workload, limits, times=times, transfer=transfer)

    shown = Stepper(
        frames,
        draw,
        title="Two GPUs, two designs",
        describe=describe,
        controls=[
            Choice("rate", "Requests a second", {str(each): each for each in (4, 12, 20)}, start=12),
            Choice("bandwidth", "Link", LINKS),
        ],
        static=-1,
        keep_place=True,
    )
    shown.go(len(shown.frames) - 1)  # at the first moment there is nothing to see
    return shown


def draw(frame: Frame) -> Svg:
    """Both designs below each other, a row for each request."""
    high = 54 + ROW * COUNT
    svg = Svg(760, 2 * high + 44, alt=describe(frame))
    for n, (name, requests) in enumerate(frame.lives.items()):
        y = high * n
        ended, met = frame.met(name)
        words = f" · {met} of {ended} that have ended met both limits"
        svg.text(0, y + 14, [(name.capitalize(), "bold"), (words, "muted")])
        for i, request in enumerate(requests):
            _life(svg, y + 24 + ROW * i, i, request, frame.sent[name][i], frame)
        x = _x(frame.now, frame)
        svg.line((x, y + 22), (x, y + 24 + ROW * COUNT), "line-ink dashed thin")
        _axis(svg, y + 26 + ROW * COUNT, frame)
    _key(svg, 2 * high + 4, frame)
    return svg


def describe(frame: Frame) -> str:
    """What has become of the requests until then."""
    words = [f"After {frame.now:.2f} s"]
    for name in frame.lives:
        ended, met = frame.met(name)
        late = [frame.late(each) for each in frame.lives[name] if each.arrival <= frame.now]
        missed = [f"{sum(which in each for each in late)} missed {which}" for which in ("TTFT", "TPOT")]
        words.append(f"{name}: {ended} of {len(frame.lives[name])} have ended, {met} within both limits, "
                     + " and ".join(missed))  # fmt: skip
    return "; ".join(words) + "."


def _x(time: float, frame: Frame) -> float:
    return LEFT + (RIGHT - LEFT) * min(time, frame.now) / frame.end


def _axis(svg: Svg, y: float, frame: Frame) -> None:
    svg.line((LEFT, y), (RIGHT, y))
    apart = next(each for each in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, math.inf) if frame.end / each <= 8)
    for n in range(int(frame.end / apart) + 1):
        x = LEFT + (RIGHT - LEFT) * n * apart / frame.end
        svg.line((x, y), (x, y + 4))
        svg.text(x, y + 14, f"{n * apart:g} s" if n else "0", "middle tiny muted")


def _life(svg: Svg, y: float, number: int, request: RequestMetrics, sent: float, frame: Frame) -> None:
    if request.arrival > frame.now:
        return
    svg.text(LEFT - 8, y + 9, f"{number}", "end tiny muted")
    moments = (request.arrival, request.admitted, request.first_token, request.first_token + sent, request.ended)
    come, begun, said, there, ended = (_x(time, frame) for time in moments)
    svg.rect(come, y + 4, max(begun - come, 0), 2, "muted", rx=0)
    if request.admitted < frame.now:
        svg.rect(begun, y, max(said - begun, 1), ROW - 3, "orange", rx=1)
    if request.first_token < frame.now:
        if there - said >= 1:
            svg.rect(said, y, there - said, ROW - 3, "green-soft", rx=1)
            svg.rect(said, y, there - said, ROW - 3, "line-green", rx=1)
        if request.first_token + sent < frame.now:
            svg.rect(there, y, max(ended - there, 1), ROW - 3, "blue", rx=1)
    if late := frame.late(request):
        svg.text(RIGHT + 10, y + 9, f"× {late}", "tiny bold purple")


def _key(svg: Svg, y: float, frame: Frame) -> None:
    x = 0.0
    for colour, words, width in KEY:
        waits = colour == "muted"
        svg.rect(x, y + (9 if waits else 4), 12, 2 if waits else 12, colour, rx=1)
        if colour == "green-soft":
            svg.rect(x, y + 4, 12, 12, "line-green", rx=1)
        svg.text(x + 17, y + 14, words, "small")
        x += width
    svg.text(0, y + 34, [("×", "bold purple"), f" later than {1e3 * frame.limits.ttft:.0f} ms to the first token, or "
                         f"{1e3 * frame.limits.tpot:g} ms for each other one"], "small")  # fmt: skip
