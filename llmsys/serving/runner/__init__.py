"""The runner: one step of many sequences, from its plan to its result, on the device as far as it can be.

`runner`    `Runner`: launches a step, in one of two ways
`graphs`    steps as CUDA graphs, by bucket
`graph`     one of them: how it is captured
`decode`    a decode step, which is followed by itself
`mixed`     any step
`eager`     steps for which there is no graph
`begin`     how a graph begins and ends: place-holders, block tables, and that it is followed by itself
`going_on`  whether it is
`forms`     which form of the model's forward a step is computed by
`step`      a plan in arrays
`rows`      what the device keeps of each request: its blocks, its newest token
`packed`    how arrays get to the device, and tokens back, with nobody waiting
`launched`  a step under way, and its result
"""

from llmsys.serving.runner.launched import Launched, all_failed
from llmsys.serving.runner.runner import Runner

__all__ = ["Launched", "Runner", "all_failed"]
