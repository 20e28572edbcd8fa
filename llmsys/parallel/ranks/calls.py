"""Which communication call a rank is in, written where others can read it: the record behind "who waits for whom".

A rank that hangs cannot be asked, and one that is dead even less. So each rank keeps a small file mapped into memory in
which it writes what it begins and ends: the collective, send or receive, with its peers, its tensor, and the line that
called it (`record`). The methods of torch's process groups and of the works that they return are watched, so every way
to them counts: `dist.send`, `batch_isend_irecv`. Calls that torch makes in C++ are not seen: DDP's own all-reduces.
"""

import functools

from llmsys.parallel.ranks.record import Record

# Methods of torch's ProcessGroup, and what users call them.
METHODS = {
    "allreduce": "all_reduce", "allreduce_coalesced": "all_reduce_coalesced", "broadcast": "broadcast",
    "reduce": "reduce", "gather": "gather", "scatter": "scatter", "barrier": "barrier",
    "monitored_barrier": "monitored_barrier", "allgather": "all_gather", "allgather_coalesced": "all_gather_coalesced",
    "_allgather_base": "all_gather_into_tensor", "all_gather_single": "all_gather_into_tensor",
    "allgather_into_tensor_coalesced": "all_gather_into_tensor", "reduce_scatter": "reduce_scatter",
    "_reduce_scatter_base": "reduce_scatter_tensor", "reduce_scatter_single": "reduce_scatter_tensor",
    "reduce_scatter_tensor_coalesced": "reduce_scatter_tensor", "alltoall": "all_to_all",
    "alltoall_base": "all_to_all_single", "all_to_all_single": "all_to_all_single",
    "send": "send", "recv": "recv", "recv_anysource": "recv",
}  # fmt: skip


_watching: Record | None = None


def watching() -> Record | None:
    """The record into which this process writes, if it does."""
    return _watching


def watch(record: Record) -> None:
    """From now on the calls of this process are written into `record`. Once in a process."""
    global _watching
    assert _watching is None
    _watching = record
    from torch._C import _distributed_c10d as c10d  # here: the process that only reads records need not load torch

    for name, known_as in METHODS.items():
        if (method := getattr(c10d.ProcessGroup, name, None)) is not None:
            setattr(c10d.ProcessGroup, name, _watched(method, known_as, record))
    c10d.Work.wait = _watched_wait(c10d.Work.wait, record)


def _watched(method, name: str, record: Record):
    @functools.wraps(method)
    def watched(group, *args, **kwargs):
        members = _members(group)
        peer = None
        if name in ("send", "recv") and method.__name__ != "recv_anysource":
            to = args[1] if len(args) > 1 else next((kwargs[k] for k in ("dstRank", "srcRank") if k in kwargs), None)
            peer = members[to] if to is not None else None
        key = record.begin(name, _name(group), members, peer, in_words([*args, *kwargs.values()]))
        try:
            work = method(group, *args, **kwargs)
        except BaseException:
            record.end(key)
            raise
        record.issued(key, work)
        return work

    return watched


def _watched_wait(method, record: Record):
    @functools.wraps(method)
    def wait(work, *args, **kwargs):
        key = record.wait(work)
        try:
            return method(work, *args, **kwargs)
        finally:
            record.end(key)

    return wait


def _name(group) -> str:
    try:
        return group.group_name
    except RuntimeError:  # it has none yet
        return "a group"


def _members(group) -> list[int]:
    import torch.distributed as dist  # as above

    try:
        return dist.get_process_group_ranks(group)
    except (KeyError, ValueError):  # not registered, as while it is made
        return list(range(group.size()))


def in_words(values) -> str:
    """The first tensor among the values, in words: "float32 (4, 8)"."""
    for value in values:
        if hasattr(value, "dtype") and hasattr(value, "shape"):
            return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        if isinstance(value, (list, tuple)) and (found := in_words(value)):
            return found
    return ""
