"""Parallel: one model on many ranks.

`ranks`       a function on many processes, with `torch.distributed` set up in each
`pipeline`    a model cut into stages: schedules as data, proved, simulated and drawn
`execute`     the same schedules run on a real model: in one process, or on ranks
"""
