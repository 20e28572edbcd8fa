"""Occupancy: how many programs of a kernel fit on one SM at the same time, and what stops one more.

A streaming multiprocessor hides the latency of memory by having something else to run. What it can run is what fits:
every program (CUDA: thread block) holds its registers, its shared memory and its warps from its first instruction to
its last. Whichever of these runs out first decides:

    occupancy(registers=168, shared_bytes=81920, num_warps=4).programs      # 2: three would need 243 KiB of 228

The rules of allocation are those of NVIDIA's occupancy calculator (cuda_occupancy.h of the CUDA toolkit): registers go
to whole warps in units of 256, and belong to one of the SM's four partitions; shared memory is given in units of 128
bytes, and of it the system keeps 1 KiB a program. The sizes are from the CUDA C++ Programming Guide, "Technical
Specifications per Compute Capability" (https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capabilities).
"""

from dataclasses import dataclass

KIB = 1024
WARP = 32
PARTITIONS = 4  # of an SM; each has a scheduler and a quarter of the registers
REGISTER_UNIT = 256  # registers of a warp are allocated in these
SHARED_UNIT = 128  # bytes
RESERVED_SHARED = 1 * KIB  # bytes of shared memory that the system keeps, a program


@dataclass(frozen=True)
class SM:
    """What one streaming multiprocessor has. Sizes are bytes; registers have 32 bits."""

    shared_bytes: int
    shared_bytes_per_program: int
    warps: int
    programs: int
    registers: int = 65_536
    registers_per_thread: int = 255


SMS = {
    "sm_80": SM(164 * KIB, 163 * KIB, 64, 32),  # A100
    "sm_86": SM(100 * KIB, 99 * KIB, 48, 16),  # RTX 30 series, A10
    "sm_89": SM(100 * KIB, 99 * KIB, 48, 24),  # RTX 40 series, L4
    "sm_90": SM(228 * KIB, 227 * KIB, 64, 32),  # H100, H200
    "sm_100": SM(228 * KIB, 227 * KIB, 64, 32),  # B200
}
"""What an SM has, by target."""


@dataclass(frozen=True)
class Occupancy:
    """What fits on an SM at the same time.

    programs    how many programs; 0 if not even one does
    limit       what stops one more: "shared memory", "registers", "warps" or "programs"
    limits      for each of these, how many programs it alone would allow
    warps       of all these programs together
    fraction    `warps` of those that the SM could hold: what profilers call occupancy
    """

    programs: int
    limit: str
    limits: dict[str, int]
    warps: int
    fraction: float


def occupancy(*, registers: int, shared_bytes: int, num_warps: int, target: str = "sm_90") -> Occupancy:
    """Programs per SM of a kernel with so many registers a thread, bytes of shared memory and warps a program.

    Raises ValueError for a target that is not in `SMS`, or a number that cannot be.
    """
    sm = sm_of(target)
    given = {"registers": (registers, 1), "shared_bytes": (shared_bytes, 0), "num_warps": (num_warps, 1)}
    for name, (value, least) in given.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    limits = {
        "shared memory": _by_shared_memory(sm, shared_bytes),
        "registers": _by_registers(sm, registers, num_warps),
        "warps": sm.warps // num_warps,
        "programs": sm.programs,
    }
    limit = min(limits, key=limits.__getitem__)
    programs = limits[limit]
    return Occupancy(programs, limit, limits, programs * num_warps, programs * num_warps / sm.warps)


def sm_of(target: str) -> SM:
    """The SM of a target such as "sm_90". Raises ValueError where it is not known."""
    if target not in SMS:
        raise ValueError(f"target must be one of {', '.join(SMS)}; got {target!r}")
    return SMS[target]


def registers_of_warp(registers: int) -> int:
    """The registers that a warp is given when each of its threads needs so many."""
    return _up(registers * WARP, REGISTER_UNIT)


def _by_shared_memory(sm: SM, shared_bytes: int) -> int:
    if shared_bytes > sm.shared_bytes_per_program:
        return 0
    return sm.shared_bytes // (_up(shared_bytes, SHARED_UNIT) + RESERVED_SHARED)


def _by_registers(sm: SM, registers: int, num_warps: int) -> int:
    warp = registers_of_warp(registers)
    if registers > sm.registers_per_thread or warp * _up(num_warps, PARTITIONS) > sm.registers:
        return 0
    return sm.registers // PARTITIONS // warp * PARTITIONS // num_warps


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
