"""The roofline: how long an operation must take, from what it computes and what it moves.

A chip computes and moves bytes at the same time. So whatever takes longer hides the other, and

    seconds = max(FLOP / peak, bytes / bandwidth)

Which of the two it is depends on the operation's **intensity**, its FLOP for each byte: below the machine's own balance
(the ridge; 295 FLOP a byte on an H100 in bf16) it waits for memory, above it for the arithmetic. Plotted against the
intensity, the FLOP/s within reach are a slope with a flat roof, hence the name (Williams, Waterman and Patterson,
https://doi.org/10.1145/1498765.1498785).

    op = Operation("x Wᵀ", flops=2 * 1 * 4096 * 4096, bytes=2 * 4096 * 4096)
    op.intensity                                    # 1.0
    estimate(op, DEVICES["H100 SXM"]).bound         # "HBM"

HBM and the matrix units are not the only ones that can be late. Where an operation says what it asks of the L2 cache,
of the chip's SRAM or of the unit for exponentials, and the device what these deliver, they take part in the maximum.

It is a bound from below: it assumes perfect overlap, full use of each unit, and that starting a kernel takes no time.
On this project's H100 a large product of matrices comes to 75–80 % of it, a copy to 89 %. A kernel that is far off has
a reason, and finding that is the use of a bound.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from llmsys.hardware.devices import DeviceSpec


@dataclass(frozen=True)
class Operation:
    """What one operation asks of a machine. The fields are for one execution; a model has `count` of them."""

    name: str
    flops: int | float
    bytes: int | float
    """Between the device's memory and its chip, both ways."""
    dtype: str = "bfloat16"
    """Of the arithmetic, as in `DeviceSpec.flops`: "float32" for what is done without tensor cores, such as a softmax,
    whatever the type is in which it is stored."""
    exponentials: int | float = 0
    l2_bytes: int | float | None = None
    """Between the L2 cache and the multiprocessors; None if unknown."""
    sram_bytes: int | float | None = None
    """Between the shared memory and its own multiprocessor, of all of them; None if unknown."""
    count: int = 1

    @property
    def intensity(self) -> float:
        """FLOP for each byte of memory traffic; infinite for an operation without any."""
        return self.flops / self.bytes if self.bytes else float("inf")


@dataclass(frozen=True)
class Estimate:
    """The least time that one execution takes, the name of what takes so long, and the time of every part."""

    seconds: float
    bound: str
    parts: dict[str, float]


def roofline_seconds(operations: Iterable[tuple[float, float]], *, peak_flops: float, bandwidth: float) -> float:
    """The least seconds for operations that run one after another, each given as (FLOP, bytes).

    Within an operation arithmetic and traffic overlap, and the longer of them counts; between operations nothing
    overlaps. `peak_flops` in FLOP/s, `bandwidth` in B/s.
    """
    if peak_flops <= 0 or bandwidth <= 0:
        raise ValueError(f"peak_flops and bandwidth must be positive, got {peak_flops} and {bandwidth}")
    return float(sum(max(flops / peak_flops, size / bandwidth) for flops, size in operations))


def attainable_flops(intensity: float, *, peak_flops: float, bandwidth: float) -> float:
    """The roof itself: the most FLOP/s within reach of an operation with `intensity` FLOP for each byte."""
    return min(peak_flops, intensity * bandwidth)


def estimate(op: Operation, device: DeviceSpec) -> Estimate:
    """The least time of one execution of `op` on `device`, and what sets it.

    The parts are "compute" and "HBM", and "L2", "SRAM" and "exponentials" where both `op` and `device` have figures. Of
    equal parts, the first in this order is the bound.

    Raises ValueError where the device has no figure for the operation's dtype.
    """
    peak_flops = device.flops_per_byte(op.dtype) * device.bandwidth
    parts = {"compute": op.flops / peak_flops, "HBM": op.bytes / device.bandwidth}
    for name, amount, rate in (
        ("L2", op.l2_bytes, device.l2_bandwidth),
        ("SRAM", op.sram_bytes, device.sram_bandwidth),
        ("exponentials", op.exponentials or None, device.exponentials),
    ):
        if amount is not None and rate is not None:
            parts[name] = amount / rate
    bound = max(parts, key=parts.__getitem__)
    return Estimate(parts[bound], bound, parts)


def total_seconds(operations: Iterable[Operation], device: DeviceSpec) -> float:
    """The least time of a whole step: of every operation, `count` times, one after another."""
    return sum(op.count * estimate(op, device).seconds for op in operations)
