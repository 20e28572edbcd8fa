"""Pictures of lesson 02.

overview        tiles of a row become pairs of numbers, the pairs merge, and give the softmax
stepper         the running maximum and the running sum, while a row streams in
frame           one frame of the stepper
merge_tree      partial results merged in the order of a tree (a stepper)
exp_overflow    where the exponential leaves each number format
passes          how often each softmax reads and writes its row
bandwidth       bytes a second of each softmax, as recorded or measured
"""

from llmsys.viz.online_softmax.bandwidth import bandwidth
from llmsys.viz.online_softmax.exp_overflow import exp_overflow
from llmsys.viz.online_softmax.merge_tree import merge_tree
from llmsys.viz.online_softmax.overview import overview
from llmsys.viz.online_softmax.passes import passes
from llmsys.viz.online_softmax.stepper import stepper

__all__ = ["bandwidth", "exp_overflow", "merge_tree", "overview", "passes", "stepper"]
