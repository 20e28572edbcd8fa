"""Ranks: a function on many processes of this machine, with `torch.distributed` set up in each.

    from llmsys.parallel.ranks import run

    def f(x):
        dist.all_reduce(x)
        return x

    run(f, 4, torch.ones(3))        # [tensor([4., 4., 4.])] * 4

`run`            calls it on so many ranks, and returns what each returned; a run that fails ends with one report
`close`          ends the processes that are kept warm between runs
`run_here`       calls it in a process that `torchrun` has started, on as many machines as that has
`device`, `dead`, `when_dead`, `pair_group`    for functions that run as ranks
"""

from llmsys.parallel.ranks.carry import NotPicklable
from llmsys.parallel.ranks.failure import Ending, RanksFailed
from llmsys.parallel.ranks.inside import dead, device, when_dead
from llmsys.parallel.ranks.launch import Results, run
from llmsys.parallel.ranks.pool import close

__all__ = ["Ending", "NotPicklable", "RanksFailed", "Results", "close", "dead", "device", "run", "when_dead"]
