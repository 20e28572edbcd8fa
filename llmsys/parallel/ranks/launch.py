"""`run`: a function on so many ranks of this machine."""

import inspect
import numbers
import sys
from collections.abc import Callable

from llmsys.parallel.ranks import pool
from llmsys.parallel.ranks.carry import NotPicklable, dumps
from llmsys.parallel.ranks.output import Output
from llmsys.parallel.ranks.team import Team

BACKENDS = ("gloo", "nccl")
ON_DEATH = ("raise", "report")
MOST = 256  # ranks on one machine


class Results(list):
    """What the ranks returned, by rank; and what they printed.

    outputs   by rank: `.stdout` and `.stderr`
    log       all of it, line by line, in the order of time, with the rank before each line ("!" marks stderr)
    """

    outputs: list[Output]
    log: str


def run(
    function: Callable,
    ranks: int = 4,
    *args,
    backend: str | None = None,
    timeout: float | None = 300.0,
    stalled_after: float | None = 30.0,
    on_death: str = "raise",
    show: bool = False,
) -> Results:
    """Calls `function(*args)` on each rank, and returns the list of what they return.

    Each rank is a process of its own, in which `torch.distributed` is set up: the function asks `dist.get_rank()` who
    it is and `device()` where its tensors should be. The function may be defined anywhere, in a notebook's cell too;
    it, its arguments and its results travel by cloudpickle, tensors through CPU memory. The processes are kept for the
    next call; `close()` ends them.

    backend         "gloo" (CPU) or "nccl" (each rank has a GPU of its own). None: NCCL where there are enough GPUs
    timeout         seconds that the run may take; None: no limit
    stalled_after   seconds after which ranks that all wait for each other, while nothing moves, count as hung. A call
                    in any thread is a wait: where threads wait for requests, while there are none, take None
    on_death        "raise": a rank that raises or dies ends the run. "report": the others go on and are told (`dead`,
                    `when_dead`); the result of such a rank is an `Ending`
    show            prints what the ranks print, as it comes, each line with its rank

    Raises ValueError and TypeError for arguments that cannot be; RanksFailed, with a report that names the ranks, where
    one raised, died or hung. No process of a failed run is left.
    """
    _validate(function, ranks, timeout, stalled_after, on_death)
    backend = _backend(backend, ranks)
    payload = _payload(function, args)
    team = Team(pool.current(), ranks, may_die=on_death == "report", show=show)
    try:
        team.begin(payload, backend)
        team.follow(timeout, stalled_after)
        return _results(team)
    except BaseException:  # Ctrl-C too
        team.discard()
        raise


def _results(team: Team) -> Results:
    results = Results(team.results[rank] if rank in team.results else team.endings[rank] for rank in range(team.ranks))
    team.end()
    results.outputs, results.log = team.outputs, team.log
    return results


def _payload(function: Callable, args: tuple) -> bytes:
    try:
        return dumps((function, args), "what is to run")
    except NotPicklable:
        dumps(function, f"the function {getattr(function, '__name__', function)}")
        for n, argument in enumerate(args):
            dumps(argument, f"argument {n} of the function")
        raise


def _validate(function, ranks, timeout, stalled_after, on_death) -> None:
    if sys.platform == "win32":
        raise RuntimeError("ranks need Linux or macOS; on Windows, run Python in WSL")
    if not callable(function):
        raise TypeError(f"function must be what each rank calls; it is {function!r}")
    if inspect.iscoroutinefunction(function):
        raise TypeError("function must be an ordinary function; call asyncio.run inside it")
    if not isinstance(ranks, numbers.Integral) or isinstance(ranks, bool) or not 1 <= ranks <= MOST:
        raise ValueError(f"ranks must be how many processes there are, from 1 to {MOST}; it is {ranks!r}")
    for name, value in (("timeout", timeout), ("stalled_after", stalled_after)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Real) or not value > 0):
            raise ValueError(f"{name} must be seconds, more than 0, or None for no limit; it is {value!r}")
    if on_death not in ON_DEATH:
        raise ValueError(f'on_death must be "raise" or "report"; it is {on_death!r}')


def _backend(backend: str | None, ranks: int) -> str:
    """The backend, after a look at how many GPUs there are."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f'backend must be "gloo", "nccl" or None; it is {backend!r}')
    if backend == "gloo":
        return backend
    import torch  # here: `import llmsys.parallel.ranks` stays quick

    gpus = torch.cuda.device_count() if torch.cuda.is_available() and torch.distributed.is_nccl_available() else 0
    if backend == "nccl" and gpus < ranks:
        raise ValueError(f'backend "nccl" needs a GPU for each of {ranks} ranks, and there are {gpus}; use "gloo"')
    return "nccl" if gpus >= ranks else "gloo"
