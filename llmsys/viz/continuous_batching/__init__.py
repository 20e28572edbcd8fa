"""Pictures of lesson 09.

overview         the same requests in a batch that waits for its longest, and in one that is filled anew at every step
stepper          the timeline of an event log: requests × steps, tokens and blocks of each step
stepped          what a frame of the stepper shows: the steps so far, and what the last of them did in words
timeline_frame   one such frame as a picture
policies         four policies on the same requests: who computes when, and for how long
measured_policies  the same four as a GPU serves them: throughput and waits
step_parts       what a decode step is made of, and what each part of its execution gives
timeline         an event log, read step by step
play             a scheduler at work without a model
"""

from llmsys.viz.continuous_batching.measured_policies import measured_policies
from llmsys.viz.continuous_batching.overview import overview
from llmsys.viz.continuous_batching.policies import policies
from llmsys.viz.continuous_batching.step_parts import step_parts
from llmsys.viz.continuous_batching.stepper import stepper

__all__ = ["measured_policies", "overview", "policies", "step_parts", "stepper"]
