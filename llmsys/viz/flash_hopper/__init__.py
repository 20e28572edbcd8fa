"""Pictures of lesson 06.

overview             who does what on a multiprocessor of an H100, and what that wins
sm_timeline          what each engine of a multiprocessor works on, cycle by cycle (a stepper)
sm_timeline_frame    one frame of the timeline
ring                 a producer, consumers and the copy engine at a ring of tiles, with its barriers (a stepper)
ring_frame           one frame of the ring
fp8_error            what numbers lose in eight bits, and what an outlier costs the others
"""

from llmsys.viz.flash_hopper.fp8_error import fp8_error
from llmsys.viz.flash_hopper.overview import overview
from llmsys.viz.flash_hopper.ring import ring
from llmsys.viz.flash_hopper.sm_timeline import sm_timeline

__all__ = ["fp8_error", "overview", "ring", "sm_timeline"]
