"""10.read_log: TTFT, TPOT and goodput of an event log, compared with the library's own."""

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_10_chunked_prefill.plain import events_of, plain_log
from llmsys.serving.goodput import Limits, goodput, request_metrics

NEVER = 1e9
"""Seconds: a limit that everybody meets."""


def expected(events: list, limits: dict) -> list:
    """What the library says of the log."""
    requests = request_metrics(events_of(events))
    ttft = {name: each.time_to_first_token for name, each in requests.items() if each.first_token is not None}
    tpot = {name: each.time_per_output_token for name, each in requests.items() if each.output_tokens > 1}
    return [dict(sorted(ttft.items())), dict(sorted(tpot.items())), goodput(requests.values(), Limits(**limits))]


def life(name: str, came: float, tokens: list[float], *, waits: float = 0.0, ends: str = "Finished") -> list[list]:
    """A request's events: it comes, is admitted, gets its tokens at these times, and ends with the last of them."""
    lines: list[list] = [["Arrived", came, name, 7], ["Admitted", came + waits, name]]
    for time in tokens:
        lines += [["Computed", time, name, 1], ["Token", time, name]]
    return [*lines, [ends, tokens[-1], name, len(tokens)]]


def log_of(*lives: list[list]) -> list[list]:
    """All of them in the order of time, and a step's end after each of its moments."""
    lines = sorted((line for each in lives for line in each), key=lambda line: line[1])
    found: list[list] = []
    for n, line in enumerate(lines):
        found.append(line)
        if line[0] != "Arrived" and (n + 1 == len(lines) or lines[n + 1][1] > line[1]):
            found.append(["Step", line[1]])
    return found


@exercise_check(
    "10.read_log",
    forbids=(
        *(f"llmsys.serving.goodput:{name}" for name in ("request_metrics", "goodput", "attainment")),
        "llmsys.serving.telemetry.metrics:*",
        "llmsys.lessons.lesson_10_chunked_prefill.right:*",
    ),
    adapt=plain_log,
    hints=(
        "Go through the events once. What do you have to remember of each request, to say all three at "
        "the end?",
        "TTFT is from Arrived to the first Token. TPOT is from the first Token to the last one, divided by the pauses "
        "between them: one fewer than tokens. Only who has Finished can have met the limits. The service ran from the "
        "first arrival to the last end, whoever's it was.",
        "for each event:  remember by request: when it Arrived; its first and its last Token and how many;\n"
        "                 when it ended (Finished, Failed, Aborted), and whether it Finished\n"
        "ttft[r] = first − arrived                  tpot[r] = (last − first) / (tokens − 1), of two tokens or more\n"
        "met = those that Finished, with ttft ≤ limits.ttft, and tpot ≤ limits.tpot if they have one\n"
        "goodput = len(met) / (last end − first arrival)",
    ),
)  # fmt: skip
def read_log(answer: Answer) -> None:
    def number(low: int, high: int) -> float:
        return int(answer.randint(low, high)) / 64  # so that differences are exact

    def agrees(lines: list, ttft: float = NEVER, tpot: float = NEVER) -> None:
        limits = {"ttft": ttft, "tpot": tpot}
        answer.matches(expected(lines, limits), lines, limits, rtol=1e-9)

    with answer.property(
        "the time to the first token is from the arrival to the first token",
        why="That is the wait for an answer to begin.",
        hint="Two events of a request say when that was. Which ones?",
    ):
        for _ in range(2):
            came, first = number(1, 64), number(80, 200)
            lines = log_of([*life("a", came, [first])[:-1], ["Finished", first + 1, "a", 1]])
            ttft = expected(lines, {})[0]
            run = answer(lines, {"ttft": NEVER, "tpot": NEVER})
            answer.that(run, lambda r, ttft=ttft: r.value[0] == ttft, f"that ttft is {ttft}", got=lambda r: r.value[0])

    with answer.property(
        "one request: from its arrival to its first token, from token to token, and one in so many seconds",
        why="These are the two waits that a reader of answers feels.",
        hint="How many pauses are there between three tokens?",
    ):
        for _ in range(2):
            came, gap = number(0, 64), number(2, 20)
            agrees(log_of(life("a", came, [came + 1 + gap * n for n in range(int(answer.randint(3, 9)))])))

    with answer.property(
        "the wait for the first token begins with the arrival, also for one that waits in the queue",
        why="Whoever asks does not know of a queue: it is part of the wait.",
        hint="Which event is the first that a log has of a request?",
    ):
        agrees(log_of(life("a", number(1, 9), [3.0, 3.5, 4.5]), life("b", 1.0, [6.0, 6.25, 7.0], waits=4.0)))

    with answer.property(
        "an answer of one token has no TPOT, and meets any limit to it",
        why="There is nothing between its tokens to wait for.",
        hint="Which requests may be keys of tpot? And what does one without an entry there have to meet?",
    ):
        agrees(log_of(life("a", 0.5, [1.5]), life("b", 1.0, [2.0, 2.5])), ttft=1.25, tpot=0.75)

    with answer.property(
        "requests side by side, whose tokens come in the same steps",
        why="A step says a token for each of many requests: a log's events are not sorted by request.",
        hint="By what do you keep what you have seen?",
    ):
        tick = [1.0 + 0.125 * n for n in range(40)]
        names = "abcdefg"
        lives = [life(name, number(0, 64), tick[n : n + int(answer.randint(2, 20))]) for n, name in enumerate(names)]
        agrees(log_of(*lives))

    with answer.property(
        "goodput counts those that met both limits; to need just as long as allowed is to meet it",
        why="A limit is the longest wait that is still allowed, and a request wants both of them met.",
        hint="What does a request need to be counted? Try one that misses one limit, and one that misses the other.",
    ):
        lives = (
            life("both", 0.0, [1.0, 1.5, 2.0]), life("late", 0.0, [1.25, 1.5, 2.0]),
            life("later", 0.0, [1.5, 1.75, 2.0]), life("slow", 1.0, [1.5, 2.25]), life("neither", 1.0, [4.0, 6.0]),
            life("quick", 2.0, [2.5, 2.75, 3.0]),
        )  # fmt: skip
        agrees(log_of(*lives), ttft=1.125, tpot=0.5)
        agrees(log_of(*lives), ttft=1.0, tpot=0.5)
        agrees(log_of(*lives), ttft=1.25, tpot=0.5)
        agrees(log_of(*lives), ttft=0.25, tpot=0.25)

    with answer.property(
        "seconds run from the first arrival to the last end",
        why="A log may begin an hour after the clock did, and go on after the last end. Whoever misses the limits "
        "keeps the service busy, too.",
        hint="Which event is the first arrival, and which ones are an end? Which of the ends is the last?",
    ):
        start = 512 + number(0, 640)
        lives = (
            life("a", start + 1, [start + 2, start + 2.5]), life("b", start, [start + 3, start + 9]),
            life("c", start + 2, [start + 2.5, start + 3]),
        )  # fmt: skip
        agrees(log_of(*lives), ttft=1.5, tpot=1.0)
        agrees(log_of(*lives))
        goes_on = [*life("goes on", start + 4, [start + 5, start + 12])[:-1], ["Computed", start + 13, "goes on", 1]]
        agrees(log_of(*lives, goes_on, [["Arrived", start + 14, "waits", 3]]))

    with answer.property(
        "who was preempted has waited, and has one arrival, one first token and one last",
        why="It is admitted a second time, and what is computed again says no token twice.",
        hint="What do you do when a request is admitted, or preempted? Nothing of it changes when it arrived.",
    ):
        lives = [life("a", 0.0, [1.0, 1.5, 5.0, 5.5]), life("b", 0.5, [2.0, 2.5, 3.0])]
        lives[0] += [["Preempted", 1.75, "a", 9], ["Admitted", 4.5, "a"], ["Computed", 4.75, "a", 5]]
        agrees(log_of(*lives), ttft=1.5, tpot=1.25)

    with answer.property(
        "several tokens that come at one time are several",
        why="Speculative decoding (lesson 12) says more than one in a step: the pause between these is 0.",
        hint="What do you count for TPOT: tokens, or moments at which some came?",
    ):
        agrees(log_of(life("a", 0.0, [1.0, 1.0, 2.0, 2.0, 2.0]), life("b", 0.0, [1.0, 1.0])), tpot=0.25)

    with answer.property(
        "who failed, was aborted, or has not ended, did not get what it wants, and may have got tokens",
        why="A service that drops who is late would look good otherwise.",
        hint="Which events end a request? Which one of them is a success? Who has no token has no TTFT either.",
    ):
        lives = [
            life("a", 0.0, [1.0, 1.25, 1.5]), life("failed", 0.0, [1.0, 1.5], ends="Failed"),
            [*life("aborted", 0.5, [1.0, 6.5])[:-1], ["Aborted", 9.5, "aborted"]],
            life("goes on", 1.0, [2.0, 2.25])[:-1],
            [["Arrived", 1.5, "waits", 3]], [["Arrived", 0.25, "refused", 3], ["Failed", 7.0, "refused"]],
        ]  # fmt: skip
        agrees(log_of(*lives))
        agrees(log_of(*lives[:-1]), ttft=1.0, tpot=0.25)

    with answer.property(
        "a long log of all kinds",
        why="All of it at once.",
        hint="Take the first request that differs, and follow its events alone.",
    ):
        for _ in range(3):
            lives = []
            for n in range(12):
                came = number(0, 640)
                times, at = [], came + number(8, 128)
                for _ in range(int(answer.randint(1, 9))):
                    times.append(at)
                    at += number(0, 40)
                ends = ("Finished", "Finished", "Finished", "Failed", "Aborted")[int(answer.randint(0, 5))]
                lives.append(life(f"r{n}", came, times, waits=number(0, 8), ends=ends))
            agrees(log_of(*lives), ttft=number(64, 128), tpot=number(8, 32))
