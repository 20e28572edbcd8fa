"""How many blocks the cache may have: what is free when everything else has what it needs.

    blocks = blocks_that_fit(model, block_size=16, max_tokens_per_step=2048, max_sequences=64, max_model_len=8192)

On a GPU the largest step is run once, and the memory that it took for itself between its first and its last kernel is
set aside, and so is what graphs of decode steps may take; of what is then free, a tenth stays so, for fragments and for
the kernels' own needs. On a CPU the system says what is available (and a container's limit may say less), and half of
that stays with others.

No more than `max_sequences` of `max_model_len` tokens can ever be in use. A pool larger than that is not made, so that
a tiny model does not fill a machine with pages.
"""

import math
from collections.abc import Sequence
from numbers import Real
from pathlib import Path

import torch
from torch import nn

from llmsys.cache import Chunk, PagedCache, batch_of
from llmsys.hardware.devices import this_machine
from llmsys.serving.execution import Execution
from llmsys.serving.sampling.sampler import Draw, choose
from llmsys.serving.sampling.sampling_params import SamplingParams

USED_ON_GPU = 0.9
USED_ON_CPU = 0.5
FOR_GRAPHS = 0.03
"""Of what is free on a GPU, where nobody says how much graphs may take: they take a third of all that is left free."""
GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Where a container's limit stands, and what is used of it: control groups, version 2 and 1."""


def blocks_that_fit(
    model: nn.Module,
    *,
    block_size: int,
    max_tokens_per_step: int,
    max_sequences: int,
    max_model_len: int,
    memory: int | None = None,
    execution: Execution | None = None,
) -> int:
    """The number of blocks of a pool, block 0 included.

    Parameters
    ----------
    memory
        Bytes that the pages may take, in all layers. None: what is measured to be free.
    execution
        How steps are executed: graphs need memory, too.

    Raises
    ------
    ValueError
        Not even one block and block 0 fit.
    """
    if memory is not None and (isinstance(memory, bool) or not isinstance(memory, Real) or not math.isfinite(memory)):
        raise ValueError(f"memory must be a number of bytes, got {memory!r}")
    each = block_size * model.cache_spec().bytes_per_token
    useful = 1 + max_sequences * -(-max_model_len // block_size)
    measured = memory is None
    if measured:
        memory = free_memory(
            model, block_size=block_size, tokens=max_tokens_per_step, sequences=max_sequences, execution=execution
        )
    fit = int(memory) // each
    if fit < 2:
        raise ValueError(
            f"memory must hold at least 2 blocks of {block_size} tokens, {2 * each:,} bytes, and "
            f"{f'only {memory:,} bytes are free here' if measured else f'is {memory:,} bytes'}: "
            "free some, take a smaller model, or make the blocks smaller"
        )
    return min(fit, useful)


def free_memory(
    model: nn.Module, *, block_size: int, tokens: int, sequences: int, execution: Execution | None = None
) -> int:
    """Bytes that pages may take, beside the model, its largest step, and graphs."""
    if model.device.type != "cuda":
        return int(USED_ON_CPU * available_memory())
    taken = _taken_by_the_largest_step(model, block_size, tokens, sequences)
    free, _ = torch.cuda.mem_get_info(model.device)
    # What torch has taken from the driver and nobody uses is free, too.
    idle = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    execution = Execution() if execution is None else execution
    if execution.graphs is not False:
        taken += int(FOR_GRAPHS * free) if execution.graph_memory is None else execution.graph_memory
    return int(USED_ON_GPU * (free + idle - taken))


def available_memory() -> int:
    """Bytes of main memory that can be had without swapping, as the system, or a container's limit, says."""
    found = [_from_meminfo(), _left_in_container()]
    if known := [each for each in found if each is not None]:
        return max(0, min(known))
    return this_machine().memory_bytes // 2  # no Linux: of what is built in


@torch.inference_mode()
def _taken_by_the_largest_step(model: nn.Module, block_size: int, tokens: int, sequences: int) -> int:
    """The peak of what is allocated during the step of most tokens and most logits, its own pages not counted."""
    device = model.device
    lengths = _spread(tokens, min(sequences, tokens))
    chunks, used = [], 1
    for length in lengths:
        blocks = -(-length // block_size)
        chunks.append(Chunk([0] * length, 0, range(used, used + blocks)))
        used += blocks
    cache = PagedCache(num_blocks=used, block_size=block_size, spec=model.cache_spec())
    step = batch_of(chunks, block_size=block_size, device=device)
    params = SamplingParams(temperature=1.0, top_p=0.9)  # the most that a sampler needs
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    logits = model(step.tokens, cache, step)[0]
    choose(logits, [Draw(params, position=length) for length in lengths]).fetch()
    peak = torch.cuda.max_memory_allocated(device)
    taken = peak - before - cache.bytes
    del cache, logits
    return max(0, taken)


def _spread(total: int, parts: int) -> Sequence[int]:
    """`total` in so many nearly equal parts."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def _from_meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines if line.startswith("MemAvailable:"))
    return next((int(parts[1]) * 1024 for parts in found), None)


def _left_in_container() -> int | None:
    """Of a container's limit. None where there is none."""
    for folder, limit, used in GROUPS:
        try:
            most, taken = (int((Path(folder) / name).read_text()) for name in (limit, used))
            stat = dict(line.split() for line in (Path(folder) / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # not there, or "max"
            continue
        # Files that were read are counted as used, and make room when somebody needs it.
        return most - taken + int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    return None
