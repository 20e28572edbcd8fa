"""Workloads."""

from llmsys.serving.workload.lengths import LENGTHS, RANKS, Lengths, RequestLength, at_rank, draw_lengths

__all__ = ["LENGTHS", "RANKS", "Lengths", "RequestLength", "at_rank", "draw_lengths"]
