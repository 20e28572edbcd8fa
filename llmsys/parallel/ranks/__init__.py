"""Ranks: a function on many processes of this machine, with `torch.distributed` set up in each.

    from llmsys.parallel.ranks import run

    def f(x):
        dist.all_reduce(x)
        return x

    run(f, 4, torch.ones(3))        # [tensor([4., 4., 4.])] * 4

`run`             calls it on so many ranks, and returns what each returned; one that fails ends with one report
`close`           ends the processes that are kept warm between runs
`run_here`        calls it in a process that `torchrun` has started, on as many machines as that has
`device`, `dead`, `when_dead`, `pair_group`     for functions that run as ranks

How it is made, from the outside in: launch (run) → team (the processes of one run) → pool (warm ones) → processes and
forkserver (which starts them) → worker (a rank, which is given a job). calls, record and waits know who waits for whom,
failure writes the report, output reads what ranks print, carry and channel send functions and results. inside and pairs
are for functions that run as ranks; torchrun is launch and worker in one, for processes that are there already.
"""

from llmsys.parallel.ranks.carry import NotPicklable
from llmsys.parallel.ranks.failure import Ending, RanksFailed
from llmsys.parallel.ranks.inside import dead, device, when_dead
from llmsys.parallel.ranks.launch import Results, run
from llmsys.parallel.ranks.pairs import Pair, PairBroken, Transfer, pair_group
from llmsys.parallel.ranks.pool import close
from llmsys.parallel.ranks.torchrun import run_here, under_torchrun

__all__ = [
    "Ending", "NotPicklable", "Pair", "PairBroken", "RanksFailed", "Results", "Transfer", "close", "dead", "device",
    "pair_group", "run", "run_here", "under_torchrun", "when_dead",
]  # fmt: skip
