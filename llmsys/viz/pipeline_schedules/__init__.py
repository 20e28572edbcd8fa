"""Pictures of lesson 20.

overview       GPipe, 1F1B and ZB-H1 on four ranks: the same work, three orders
timelines      one timeline or several, a row a rank, to the same scale
rows           how a timeline's rows are drawn
editor         a schedule that can be edited, and which dependency an edit violates
edited         what an edited schedule comes to: its timeline as far as it goes, and who waits for whom
grid           one moment of the editor as a picture
stepped        a schedule by a learner's step of the simulator
recorded_runs  timelines of the runs that a benchmark has recorded
pareto         bubble against memory, a point a schedule
"""

from llmsys.viz.pipeline_schedules.editor import editor
from llmsys.viz.pipeline_schedules.overview import overview
from llmsys.viz.pipeline_schedules.pareto import Point, pareto
from llmsys.viz.pipeline_schedules.recorded_runs import recorded_runs
from llmsys.viz.pipeline_schedules.timelines import timelines

__all__ = ["Point", "editor", "overview", "pareto", "recorded_runs", "timelines"]
