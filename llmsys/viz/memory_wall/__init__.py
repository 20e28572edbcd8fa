"""Pictures of lesson 01. Its rooflines are in `llmsys.viz.roofline`, its chart of growth in `llmsys.viz.charts`.

overview         where naive attention's matrices live, and how long the chip waits for them
naive_traffic    what the three kernels of naive attention move between memory and chip
ridge            FLOP/s of naive attention, and the fall where its matrices leave the cache
"""

from llmsys.viz.memory_wall.naive_traffic import naive_traffic
from llmsys.viz.memory_wall.overview import overview
from llmsys.viz.memory_wall.ridge import ridge

__all__ = ["naive_traffic", "overview", "ridge"]
