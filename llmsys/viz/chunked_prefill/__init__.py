"""Pictures of lesson 10.

overview         a prompt that is read in one step, and in pieces, beside two who are answering
stepper          the goodput explorer: the moments around the longest stall of a service, and the latencies of all
explored         what a frame of the explorer shows
explorer_frame   one such frame as a picture
curves           who is within the limits at which rate; what a budget does to one prompt, and to the highest rate
recorded_runs    what was recorded on a GPU, and what the simulator says of the same runs: who was in time, the waits
service          conversations on a simulated engine, each run done once
witness          what each step of a simulated run computed, kept for a picture
"""

from llmsys.viz.chunked_prefill.curves import attained, budgets, stalls
from llmsys.viz.chunked_prefill.overview import overview
from llmsys.viz.chunked_prefill.recorded_runs import recorded_goodput, recorded_runs
from llmsys.viz.chunked_prefill.service import Service
from llmsys.viz.chunked_prefill.stepper import stepper

__all__ = ["Service", "attained", "budgets", "overview", "recorded_goodput", "recorded_runs", "stalls", "stepper"]
