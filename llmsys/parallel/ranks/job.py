"""What both sides of a run know: the job that a rank is given, and the files in which a rank says what it is doing."""

import signal
from dataclasses import dataclass
from pathlib import Path

DUMP = getattr(signal, "SIGUSR1", None)  # at this signal a rank writes the stacks of its threads


@dataclass(frozen=True)
class Job:
    """One rank's part of a run, beside the function itself."""

    number: int  # of the run
    rank: int
    ranks: int
    backend: str  # "gloo" or "nccl"
    store: str  # the path of the file through which the ranks find each other
    may_die: bool  # a rank that fails leaves, and the others go on
    threads: int | None  # torch's threads in each rank; None: as OMP_NUM_THREADS says
    directory: str
    environment: dict[str, str]
    path: list[str]


def calls_file(directory: Path, pid: int) -> Path:
    """Where a rank's process records its communication calls."""
    return directory / f"calls-{pid}"


def stacks_file(directory: Path, pid: int) -> Path:
    """Where it writes its stacks."""
    return directory / f"stacks-{pid}"
