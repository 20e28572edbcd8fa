"""Two GPUs, divided or not: the same conversations by two engines that each do everything, and by one that computes
prompts and one that goes on from there.

A model of Mistral-7B's shape with random weights, in bf16, in two processes that each have a GPU; keys and values go
from one to the other by NCCL. Conversations (`synthetic`, as long as those of azure-conversation, Poisson arrivals,
forced output lengths, drawn from a seed) come at several rates, and each rate is served by both designs in turn. **It
is the same pair of engines both times**, behind the same front: the router is told who is to do what (`assign`).
Colocated, a request goes to the engine that holds less. Both designs have steps of the same budget.

The chapter, in the order in which to read it:

    designs     the two designs, how much is asked, and the limits
    engines     in each engine's process: its model, and what it writes down; and the link alone
    run         what is served, in which order, and the record
    read        what a record says: prices, what a simulator makes of the same requests, and a table

Rows, by `sweep`:

    link        what a pair's send and receive alone reach between these two GPUs, for messages of `bytes`
    served      `requests` conversations, `rate` a second for both GPUs together, by the design `name`: percentiles of
                TTFT, TPOT and of the time between two tokens, of all requests; `ttft_ms` and `tpot_ms` of each of them;
                the share that met both limits, `attainment`, and at this rate the requests a second and GPU that did,
                `goodput_per_gpu`. `moved_bytes` were sent, a layer of a step's prompts at a time, and `moved_gbps` is
                what they had while they were: from when a layer's rows were computed to when they were there
    step        steps of nearly one load (`llmsys.bench.goodput`), by the `role` of the engine: colocated, prefill,
                decode
    sizes       to how many tokens that role's steps with prompts are filled up

The steps are what a simulator's prices are fitted to (`recorded_times`), which can then be asked the same
(`simulated`). Colocated comes first, which needs no NCCL, and whatever hangs ends after `patience`, with the stacks of
both engines. Without two GPUs the processes are on the CPU, with gloo and a tiny model: figures of no interest, but the
same code.
"""

from llmsys.bench.disaggregate.designs import DESIGNS, ENGINES, GPUS, LIMITS, SMALL, Sizes, sizes
from llmsys.bench.disaggregate.read import recorded_times, share_within, simulated, table
from llmsys.bench.disaggregate.run import NoTime, measure

__all__ = [
    "DESIGNS", "ENGINES", "GPUS", "LIMITS", "SMALL", "NoTime", "Sizes", "measure", "recorded_times", "share_within",
    "simulated", "sizes", "table",
]  # fmt: skip
