"""Counters on the GPU that are 0 before a launch and after it, so that no launch has to clear them.

Launches that may run at the same time must not share them. Those of a stream run one after another, so a stream has its
own. A launch that is captured in a CUDA graph will run on who knows which stream: it gets some that nobody else has,
until all have been given away; then the first are given away again. Two graphs would have to run at the same time,
captured thousands of launches apart, to meet.
"""

import torch
from torch import Tensor

CAPTURED = 4096
"""Launches in graphs that have counters to themselves."""
STREAMS = 64

_rows: dict[tuple[int, int], Tensor] = {}  # (device, programs) -> a row a launch
_streams: dict[tuple[int, int], int] = {}  # (device, stream) -> its row
_given: dict[int, int] = {}  # device -> how many rows captured launches have got


def counters_for(device: torch.device, programs: int) -> Tensor:
    """(programs,) int32, all 0 when the launch that they are for begins. That launch must leave them so."""
    if device.type != "cuda":
        return torch.zeros(programs, dtype=torch.int32, device=device)
    index = torch.cuda.current_device() if device.index is None else device.index
    capturing = torch.cuda.is_current_stream_capturing()
    rows = _rows.get((index, programs))
    if rows is None:
        rows = torch.zeros(STREAMS + CAPTURED if not capturing else 1, programs, dtype=torch.int32, device=device)
        if capturing:  # they cannot be cleared now for later: the graph clears these itself, each time
            return rows[0]
        torch.cuda.synchronize(device)  # once: other streams must find them cleared
        _rows[index, programs] = rows
    if capturing:
        number = _given[index] = _given.get(index, -1) + 1
        return rows[STREAMS + number % CAPTURED]
    stream = torch.cuda.current_stream(device).cuda_stream
    number = _streams.setdefault((index, stream), sum(device == index for device, _ in _streams))
    return rows[number % STREAMS]
