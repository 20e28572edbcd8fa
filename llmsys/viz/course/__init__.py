"""The course as a whole.

lesson_map    the lessons in their parts: those that can be opened, those that are done, those to come
tiers         the three tiers that a lesson runs on, and which of them this machine is
cover         the README's picture: from one kernel to a cluster
parts         sorts lessons into the parts of the course
"""

from llmsys.viz.course.cover import cover
from llmsys.viz.course.lesson_map import lesson_map
from llmsys.viz.course.tiers import tiers

__all__ = ["cover", "lesson_map", "tiers"]
