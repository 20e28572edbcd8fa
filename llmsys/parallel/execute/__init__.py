"""Execute: a pipeline schedule run on a real model, in one process or on ranks.

    from llmsys.parallel.execute import Cut, execute_here, stages_of
    from llmsys.parallel.pipeline import make_schedule
    schedule = make_schedule("zb-v", 2, 8)
    cut = Cut.by_cost(model.config, schedule.num_stages, context=256)
    stages = stages_of(model, schedule, cut)
    losses, timeline = execute_here(schedule, stages, microbatches)

`PutOff`            the model's factory for matrices that splits a backward pass into I and W, each by `split_backward`
`Stage`, `Cut`      a part of the model that computes F, I and W; where the model is cut, by cost
`Worker`, `Wire`    a rank's part in a step; how results get from rank to rank
`execute_here`      all ranks in one process
`Pipeline`          on ranks: a rank's end of it, the losses, and everybody's timeline
`Joint`             copies of a weight summed, and one length of all gradients

The timeline of a run is of the simulator's kind: drawn, measured and compared as that is. Read in this order:
`put_off`, `stage`, `cut`, `wire`, `worker`, `here`, `ranks`, `copies`.
"""

from llmsys.parallel.execute.copies import Copy, Joint, copies
from llmsys.parallel.execute.cut import Cut, check_class, check_model, costs, load_stages, stages_of
from llmsys.parallel.execute.here import execute_here
from llmsys.parallel.execute.put_off import PutOff, SplitBackward, SplitLinear, split_backward
from llmsys.parallel.execute.ranks import Pipeline
from llmsys.parallel.execute.stage import Stage
from llmsys.parallel.execute.wire import MadeUpWire, RankWire, Wire
from llmsys.parallel.execute.worker import Clock, GpuClock, Worker

__all__ = [
    "Clock",
    "Copy",
    "Cut",
    "GpuClock",
    "Joint",
    "MadeUpWire",
    "Pipeline",
    "PutOff",
    "RankWire",
    "SplitBackward",
    "SplitLinear",
    "Stage",
    "Wire",
    "Worker",
    "check_class",
    "check_model",
    "copies",
    "costs",
    "execute_here",
    "load_stages",
    "split_backward",
    "stages_of",
]
