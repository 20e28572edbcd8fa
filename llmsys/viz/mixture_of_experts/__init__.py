"""The pictures of lesson 14, Mixture of experts.

overview         what is built, at one glance
stepper          loads behind a trained router, batch after batch, with a bias or a loss switched on
stream           what the stepper shows
grouped_speed    grouped products on a GPU, against torch's
training_arms    four ways to keep loads even: losses and loads of a record's runs
"""

from llmsys.viz.mixture_of_experts.grouped_speed import grouped_speed
from llmsys.viz.mixture_of_experts.overview import overview
from llmsys.viz.mixture_of_experts.stepper import stepper
from llmsys.viz.mixture_of_experts.stream import passing
from llmsys.viz.mixture_of_experts.training_arms import training_arms

__all__ = ["grouped_speed", "overview", "passing", "stepper", "training_arms"]
