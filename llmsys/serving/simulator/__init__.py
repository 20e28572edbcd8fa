"""The simulator."""

from llmsys.serving.simulator.load import StepLoad, StepRecorder, TimedStep

__all__ = ["StepLoad", "StepRecorder", "TimedStep"]
