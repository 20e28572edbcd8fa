"""Serving: tokens a second of the whole engine, what its steps are made of, and what each part of its speed gives.

The chapter, in the order in which to read it:

    workloads   what is asked: requests of given lengths, and the least time that they can take
    serve       requests through an engine, and how long that took
    steps       a step in three parts: attention, the other kernels, and nothing to do
    peer        transformers' continuous batching
    execution   the ways to execute a step: all parts of `Execution` on, each one off in turn, and all off
    run         what is measured, in which order, and the record
    show        the record as tables

Weights are random, for a token takes as long whatever it says. In a record, `sweep` says what a row is:

    copy         the GPU's bandwidth, measured by a copy
    throughput   256 requests (on a GPU), all there at the beginning
    one          one request alone
    step         a decode step in its parts: of the full batch, and of one request
    kernels      the largest kernels of such a step
    peer         this engine and transformers', on one short workload
    policies     the four policies on requests that come one after the other
"""

from llmsys.bench.serving.run import measure
from llmsys.bench.serving.show import table

__all__ = ["measure", "table"]
