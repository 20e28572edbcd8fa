"""Devices: what a chip can do at best, from its data sheet; and what this machine does, measured.

Two rates decide how fast code can be: bytes per second between memory and chip, and operations per second on the chip.
Their quotient is the balance of the machine: an H100 does 989e12 / 3.35e12 ≈ 295 operations of bf16 in the time of one
byte. Code that does fewer for each byte that it moves waits for memory.

Data sheets must be read with care. NVIDIA prints the tensor cores' figures "with sparsity", half of the weights being
zero in a fixed pattern, which hardly anybody uses: the figures here are the **dense** ones, half as large. A gigabyte
of memory is 2³⁰ bytes there, a gigabyte per second 10⁹. And no program reaches a peak: this project's H100 copies at
3.0 of its 3.35 TB/s and multiplies bf16 matrices at 746 of 989 TFLOP/s. Hence `this_machine`, which measures.
"""

import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch

from llmsys.hardware import calibration

KIB, MIB, GIB = 2**10, 2**20, 2**30
TFLOPS = 1e12


@dataclass(frozen=True)
class DeviceSpec:
    """What one device can do. None stands for what its maker does not say, or what it does not have."""

    name: str
    memory_bytes: int
    bandwidth: float
    """Between the device's memory and its chip, B/s."""
    flops: dict[str, float]
    """Dense FLOP/s by the type of the inputs. "float32" is without tensor cores; "tf32" is float32 cut to 10 bits of
    mantissa, with them; the sums of the 16-bit and 8-bit types are kept in float32."""
    sram_bytes_per_sm: int | None
    """Shared memory and L1 cache of one multiprocessor, which are one memory, divided as a kernel likes. (In
    `this_machine` it is what the driver grants as shared memory, 28 KiB less on an H100.)"""
    sms: int | None
    """Streaming multiprocessors; on Apple's chips GPU cores; on a CPU the threads that torch uses."""
    l2_bytes: int | None
    interconnect: float | None
    """Between the device and its peers, B/s, both directions together, as NVLink is advertised: one has half."""
    source: str
    l2_bandwidth: float | None = None
    """Between the L2 cache and all multiprocessors, reading, B/s; of the devices here, only the A100's is published."""
    sram_bandwidth: float | None = None
    """Between shared memory and its own multiprocessor, of all multiprocessors together, B/s."""
    exponentials: float | None = None
    """Per second, by the units for special functions of all multiprocessors together."""
    host_link: float | None = None
    """Between the device and main memory, B/s, both directions together, as PCIe is advertised: one has half."""

    def flops_per_byte(self, dtype: str = "bfloat16") -> float:
        """The operations that the device does in the time of one byte: below that intensity it waits for memory.

        Raises ValueError where the device has no figure for that dtype.
        """
        if dtype not in self.flops:
            raise ValueError(f"dtype must be one of {', '.join(self.flops)} on {self.name}, got {dtype!r}")
        return self.flops[dtype] / self.bandwidth


def _per_sm(sms: int, clock: float) -> dict[str, float]:
    """What every multiprocessor does in each cycle at the clock (Hz) at which the tensor cores reach their FLOP/s.

    Shared memory: 32 banks of 4 bytes. Special functions: 16 results. So it has been from compute capability 8.0 to
    10.0 (CUDA C++ programming guide, compute capabilities and table of arithmetic throughput,
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/; the same for the H100 in https://arxiv.org/abs/2407.08608,
    and for the B200 in https://www.together.ai/blog/flashattention-4).
    """
    return {"sram_bandwidth": sms * 128 * clock, "exponentials": sms * 16 * clock}


_HOPPER_FLOPS = {
    "float32": 67 * TFLOPS,
    "tf32": 494.5 * TFLOPS,
    "float16": 989.5 * TFLOPS,
    "bfloat16": 989.5 * TFLOPS,
    "float8": 1979 * TFLOPS,
    "int8": 1979 * TFLOPS,
}

_SPECS = (
    DeviceSpec(
        name="H100 SXM",
        memory_bytes=80 * GIB,
        bandwidth=3.35e12,
        flops=_HOPPER_FLOPS,
        sram_bytes_per_sm=256 * KIB,
        sms=132,
        l2_bytes=50 * MIB,
        interconnect=900e9,
        host_link=128e9,  # PCIe 5.0 × 16
        source="NVIDIA H100 Tensor Core GPU data sheet, https://resources.nvidia.com/en-us-tensor-core/"
        "nvidia-tensor-core-gpu-datasheet (halved: sparse there); SMs and caches: H100 architecture white paper",
        **_per_sm(132, 1.83e9),
    ),
    DeviceSpec(
        name="H200",
        memory_bytes=141 * GIB,
        bandwidth=4.8e12,
        flops=_HOPPER_FLOPS,
        sram_bytes_per_sm=256 * KIB,
        sms=132,
        l2_bytes=60 * MIB,
        interconnect=900e9,
        host_link=128e9,  # PCIe 5.0 × 16
        source="NVIDIA H200 Tensor Core GPU data sheet (SXM), https://www.nvidia.com/en-us/data-center/h200/ "
        "(halved: sparse there); the chip is the H100's, but for the L2 cache, which one reports as 60 MiB",
        **_per_sm(132, 1.83e9),
    ),
    DeviceSpec(
        name="H800",
        memory_bytes=80 * GIB,
        bandwidth=3.35e12,
        flops=_HOPPER_FLOPS,
        sram_bytes_per_sm=256 * KIB,
        sms=132,
        l2_bytes=50 * MIB,
        interconnect=400e9,
        source="Zhao et al., Insights into DeepSeek-V3, https://arxiv.org/abs/2505.09343: an H100 whose NVLink is cut "
        "from 900 to 400 GB/s (and whose float64 is cut, too)",
        **_per_sm(132, 1.83e9),
    ),
    DeviceSpec(
        name="A100 80GB SXM",
        memory_bytes=80 * GIB,
        bandwidth=2.039e12,
        flops={
            "float32": 19.5 * TFLOPS,
            "tf32": 156 * TFLOPS,
            "float16": 312 * TFLOPS,
            "bfloat16": 312 * TFLOPS,
            "int8": 624 * TFLOPS,
        },
        sram_bytes_per_sm=192 * KIB,
        sms=108,
        l2_bytes=40 * MIB,
        interconnect=600e9,
        host_link=64e9,  # PCIe 4.0 × 16
        source="NVIDIA A100 80GB data sheet, https://www.nvidia.com/en-us/data-center/a100/; SMs and caches (L2: 5120 "
        "bytes a cycle): A100 architecture white paper",
        l2_bandwidth=5120 * 1.41e9,
        **_per_sm(108, 1.41e9),
    ),
    DeviceSpec(
        name="B200",
        memory_bytes=180 * GIB,
        bandwidth=7.7e12,
        flops={
            "float32": 75 * TFLOPS,
            "tf32": 1100 * TFLOPS,
            "float16": 2250 * TFLOPS,
            "bfloat16": 2250 * TFLOPS,
            "float8": 4500 * TFLOPS,
            "int8": 4500 * TFLOPS,
            "float4": 9000 * TFLOPS,
        },
        sram_bytes_per_sm=256 * KIB,
        sms=148,
        l2_bytes=126 * MIB,
        interconnect=1.8e12,
        source="NVIDIA Blackwell data sheet, HGX B200, https://resources.nvidia.com/en-us-blackwell-architecture/"
        "datasheet (halved where sparse); SMs, L2 and the width of the memory bus as the driver says, in "
        "https://github.com/pytorch/ao/pull/4002",
        **_per_sm(148, 1.86e9),
    ),
    DeviceSpec(
        name="RTX 4090",
        memory_bytes=24 * GIB,
        bandwidth=1.008e12,
        flops={
            "float32": 82.6 * TFLOPS,
            "tf32": 82.6 * TFLOPS,
            "float16": 165.2 * TFLOPS,
            "bfloat16": 165.2 * TFLOPS,
            "float8": 330.3 * TFLOPS,
            "int8": 660.6 * TFLOPS,
        },
        sram_bytes_per_sm=128 * KIB,
        sms=128,
        l2_bytes=72 * MIB,
        interconnect=64e9,  # PCIe 4.0 × 16: there is no NVLink
        host_link=64e9,
        source="NVIDIA Ada GPU architecture white paper v2.01, appendix A, https://images.nvidia.com/aem-dam/Solutions/"
        "geforce/ada/nvidia-ada-gpu-architecture.pdf",
        **_per_sm(128, 2.52e9),
    ),
    DeviceSpec(
        name="Apple M3 Max",
        memory_bytes=128 * GIB,
        bandwidth=400e9,
        flops={"float32": 14.3 * TFLOPS, "float16": 14.3 * TFLOPS},
        sram_bytes_per_sm=None,
        sms=40,
        l2_bytes=None,
        interconnect=None,
        source="https://support.apple.com/en-us/117737 (40-core GPU, largest memory). Apple gives no FLOP/s: "
        "cores × 128 lanes × 2 × 1.40 GHz",
    ),
    DeviceSpec(
        name="Apple M4",
        memory_bytes=32 * GIB,
        bandwidth=120e9,
        flops={"float32": 3.76 * TFLOPS, "float16": 3.76 * TFLOPS},
        sram_bytes_per_sm=None,
        sms=10,
        l2_bytes=None,
        interconnect=None,
        source="https://support.apple.com/en-us/121552 (10-core GPU, largest memory). Apple gives no FLOP/s: "
        "cores × 128 lanes × 2 × 1.47 GHz",
    ),
)

DEVICES: dict[str, DeviceSpec] = {spec.name: spec for spec in _SPECS}
"""The data sheets, by name."""

_CUDA_NAMES = {
    "NVIDIA H100 80GB HBM3": "H100 SXM",
    "NVIDIA H200": "H200",
    "NVIDIA H800": "H800",
    "NVIDIA A100-SXM4-80GB": "A100 80GB SXM",
    "NVIDIA B200": "B200",
    "NVIDIA GeForce RTX 4090": "RTX 4090",
}


def detect(name: str | None = None) -> DeviceSpec | None:
    """The data sheet of this machine's GPU, or of the one that torch calls `name`; None if there is none here.

    The match is exact: an "NVIDIA H100 PCIe" or a "4090 Laptop GPU" is another device with other figures.
    """
    if name is None:
        if not torch.cuda.is_available():
            return None
        name = torch.cuda.get_device_name()
    return DEVICES.get(_CUDA_NAMES.get(name, ""))


def this_machine(path: str | os.PathLike | None = None, *, refresh: bool = False) -> DeviceSpec:
    """This machine as measured: what a copy moves (bytes read plus bytes written), and what a matrix product computes.

    On the GPU if there is one, otherwise on the CPU with as many threads as torch uses. It takes about a second, once:
    the result is kept in a file, for this device and this version of torch. `path` is that file, by default
    `llmsys/this_machine.json` in the user's cache folder; `refresh` measures again.
    """
    path = Path(path) if path is not None else calibration.default_path()
    key = f"{_device_name()}, torch {torch.__version__}, {_threads()} threads"
    kept = None if refresh else calibration.read(path)
    if kept is not None and kept[0] == key and kept[1].keys() == DeviceSpec.__dataclass_fields__.keys():
        return DeviceSpec(**kept[1])
    spec = _measure()
    calibration.write(path, key, asdict(spec))
    return spec


def _measure() -> DeviceSpec:
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    # Larger than any cache. On a CPU the product is small, because laptops have to do it, too.
    x = torch.empty((1 << 30 if gpu else 1 << 27) // 4, device=device).normal_()
    y = torch.empty_like(x)
    copy = _seconds(lambda: y.copy_(x))
    n = 8192 if gpu else 1024
    flops = {}
    for dtype in (torch.float32, torch.bfloat16) if gpu else (torch.float32,):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        flops[str(dtype).removeprefix("torch.")] = 2 * n**3 / _seconds(lambda a=a, b=b: a @ b)
    properties = torch.cuda.get_device_properties(0) if gpu else None
    return DeviceSpec(
        name=_device_name(),
        memory_bytes=properties.total_memory if gpu else _main_memory(),
        bandwidth=2 * x.nbytes / copy,
        flops=flops,
        sram_bytes_per_sm=properties.shared_memory_per_multiprocessor if gpu else None,
        sms=properties.multi_processor_count if gpu else _threads(),
        l2_bytes=properties.L2_cache_size if gpu else None,
        interconnect=None,
        source=f"measured here on {date.today().isoformat()} with torch {torch.__version__}",
    )


def _seconds(run: Callable[[], object], budget: float = 0.3) -> float:
    """The shortest of several runs: a peak is what nothing disturbed."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    run()  # the first touches its memory, loads libraries, raises clocks
    synchronize()
    shortest, deadline = float("inf"), time.perf_counter() + budget
    while True:
        start = time.perf_counter()
        run()
        synchronize()
        end = time.perf_counter()
        shortest = min(shortest, end - start)
        if end > deadline:
            return shortest


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _threads() -> int:
    return torch.get_num_threads()


def _main_memory() -> int:
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    import ctypes

    kilobytes = ctypes.c_ulonglong()  # on Windows
    ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
    return kilobytes.value * KIB
