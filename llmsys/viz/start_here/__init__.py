"""Pictures of lesson 00.

stepper    a model writes a sentence: the candidates for the next token, and the one that is taken
"""

from llmsys.viz.start_here.stepper import stepper

__all__ = ["stepper"]
