"""What the caller is told of a run that failed: one report that names the ranks."""

import linecache
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from llmsys.parallel.ranks import waits
from llmsys.parallel.ranks.output import Output
from llmsys.parallel.ranks.record import Call, Written

TAIL = 10  # lines of stderr that a report shows of a rank that died
NO_STACK = "it did not answer the question where it is: it may be stopped (SIGSTOP, a debugger)"


@dataclass(frozen=True)
class Ending:
    """How one rank of a run ended. In `run(…, on_death="report")` it stands in the place of the result.

    kind        "returned", "raised", "died", or "waited": it was alive, and neither returned nor raised
    told        what there is to say about it: a traceback, a signal, where it waited
    exception   what it raised, where that could be sent
    status      of a rank that died: its exit code, or minus the signal that killed it
    call        the communication call that it was in, or its last one
    after       seconds from the run's beginning
    """

    rank: int
    kind: str
    told: str
    after: float
    exception: BaseException | None = None
    status: int | None = None
    call: Call | None = None


class RanksFailed(RuntimeError):
    """A run in which a rank raised, died, or did not end in time. The message is the whole report.

    reason      "raised", "died" or "hung"
    rank        the rank with which it began; of a hang, the first that waited
    endings     how each rank ended
    outputs     what each rank printed, by rank
    log         the same of all, in the order of time
    circle      of a hang: ranks each of which waits for the next one, and the last for the first
    """

    def __init__(self, report: str, reason: str, rank: int, endings: Mapping[int, Ending], circle: list[int]):
        super().__init__(report)
        self.reason, self.rank, self.endings, self.circle = reason, rank, dict(endings), circle
        self.outputs: list[Output] = []
        self.log = ""


def how_it_died(status: int) -> str:
    """An exit status in words.

    >>> how_it_died(-9), how_it_died(3)
    ('was killed by SIGKILL, by hand or for want of memory', 'ended with exit code 3')
    """
    if status >= 0:
        return f"ended with exit code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    guess = {"SIGKILL": ", by hand or for want of memory", "SIGSEGV": ", a bad access in C++ code"}.get(name, "")
    return f"was killed by {name}{guess}"


def explain(
    headline: str, reason: str, first: int, endings: Mapping[int, Ending], states: Mapping[int, waits.State],
    stacks: Mapping[int, str], now: float,
) -> RanksFailed:  # fmt: skip
    """The exception for a run: the rank with which it began comes first, then the others. `now` is when it failed."""
    circle = waits.circle(states) if reason == "hung" else []
    lines = [headline]
    if circle:
        lines.append("They wait in a circle: " + " → ".join(f"rank {each}" for each in [*circle, circle[0]]) + ".")
    shown: dict[str, int] = {}  # what was told, and of which rank
    for rank in sorted(endings, key=lambda each: (each != first, each)):
        ending = endings[rank]
        if ending.kind in ("raised", "died"):
            when = f" after {ending.after:.1f} s" if ending.kind == "died" else ""
            if shown.setdefault(ending.told, rank) != rank:
                lines += ["", f"rank {rank} {ending.kind}{when}, just as rank {shown[ending.told]} did"]
                continue
            text = ending.told if rank == first or not follows(ending) else _last_line(ending.told)
            lines += ["", f"rank {rank} {ending.kind}{when}:", _indented(with_source(text))]
        else:
            lines += ["", waits.describe(rank, states, now)]
            if stack := stacks.get(rank):
                lines.append(_indented(with_source(stack)))
    return RanksFailed("\n".join(lines), reason, first, endings, circle)


def follows(ending: Ending) -> bool:
    """Whether it is what others say when a peer is gone."""
    return bool(re.search(r"[Cc]onnection (closed|reset)|Broken pipe", ending.told))


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip("\n").splitlines())


def with_source(text: str) -> str:
    """Tracebacks, with the lines of code that only this process has: those of a notebook's cells."""
    lines = text.splitlines()
    found = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        found.append(line)
        place = re.match(r'( *)File "(.+)", line (\d+)', line)
        if place and not following.startswith(place[1] + "  "):
            if code := linecache.getline(place[2], int(place[3])).strip():
                found.append(f"{place[1]}  {code}")
    return "\n".join(found)


_OURS = re.compile(r'File ".*[/\\]parallel[/\\]ranks[/\\](worker|forkserver|calls|record|pairs)\.py"|File "<string>"')
_OF_TORCH = re.compile(r'File ".*[/\\]torch[/\\]distributed[/\\](distributed_c10d|c10d_logger)\.py"')


def stack_in_words(dump: str) -> str:
    """What faulthandler wrote of a rank, without the frames and threads of this package."""
    kept = []
    for block in re.split(r"\n(?=Thread 0x|Current thread 0x)", dump.strip()):
        head, *frames = block.splitlines() or [""]
        if not any("in _listen" in frame and _OURS.search(frame) for frame in frames):
            frames = [each for each in frames if each.strip() and not (_OURS.search(each) or _OF_TORCH.search(each))]
            kept += ["stack, innermost call first:", *frames] if frames else []
    return "\n".join(kept)


def how_it_ended(status: int, call: Call | None, stderr: list[str]) -> str:
    """What there is to say of a rank that died. `call` is the one that it was in, or else its last one."""
    lines = [f"it {how_it_died(status)}"]
    if call:
        lines.append(f"{'it was in' if call.waiting else 'its last communication call was'} {call}")
    else:
        lines.append("it had made no communication call")
    shown = [each for each in stderr if each.strip() and not _OURS.search(each) and "Extension modules:" not in each]
    if shown:
        lines += ["the end of its stderr:", *(f"  {line}" for line in shown[-TAIL:])]
    return "\n".join(lines)


def state_of(ending: Ending | None, written: Written) -> waits.State:
    """A rank's state for `waits`: still running where there is no ending."""
    over = {"returned": "has returned", "raised": "has raised", "died": "has died"}
    return waits.State(written, over.get(ending.kind, "") if ending else "")
