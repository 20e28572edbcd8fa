"""Pictures of lesson 11.

overview        one answer, and prompts that come meanwhile: on one GPU, and on two
interference    how long a token takes while prompts come, by how many of them come
order           an order of computing and sending, as two lanes
goodputs        placements, by their goodput per GPU
cluster         more and more engines, by who is asked
stepper         two timelines, colocated and disaggregated, under one stream of requests
two_gpus        both designs on two GPUs, measured, and the link between these
timelines       what the stepper shows: each request's life, up to a moment
"""

from llmsys.viz.disaggregation.cluster import cluster
from llmsys.viz.disaggregation.goodputs import goodputs
from llmsys.viz.disaggregation.interference import interference
from llmsys.viz.disaggregation.order import order
from llmsys.viz.disaggregation.overview import overview
from llmsys.viz.disaggregation.stepper import stepper
from llmsys.viz.disaggregation.two_gpus import two_gpus

__all__ = ["cluster", "goodputs", "interference", "order", "overview", "stepper", "two_gpus"]
