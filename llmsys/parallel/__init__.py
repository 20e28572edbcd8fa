"""Parallel: one model on many ranks.

`pipeline`    a model cut into stages: schedules as data, proved, simulated and drawn
"""
