"""The runner: one step of many sequences, from its plan to its result."""

from llmsys.serving.runner.runner import Launched, Runner, all_failed

__all__ = ["Launched", "Runner", "all_failed"]
