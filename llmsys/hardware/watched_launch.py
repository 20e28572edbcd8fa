"""One launch of an interpreted kernel, watched: what the hooks of `llmsys.hardware.sanitizer` do.

A `Region` is the memory of one tensor. The `Watcher` knows the regions of the launch that is running, tags the pointers
that its kernel is given, looks at each load and store before it happens, and writes down what it finds in a `Report`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from llmsys.hardware.races import ATOMICS, LOADS, STORES, Clock, Meeting, Shadow, shadows
from llmsys.hardware.sanitizer_report import LANE_RACE, LOAD, MOST_FINDINGS, RACE, READ_RACE, STORE, Finding, Report
from llmsys.hardware.tier import load_triton

TAG_SHIFT = 52  # no user-space address has so many bits
ADDRESS = np.uint64((1 << TAG_SHIFT) - 1)


class Region:
    """The memory of one tensor: its elements between the first and the last byte."""

    def __init__(self, name: str, x: Tensor):
        self.name, self.x, self.start, self.size = name, x, x.data_ptr(), x.element_size()
        self.storage = x.untyped_storage().data_ptr()  # views of one storage share it: they may overlap
        span = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
        self.end = self.start + span * self.size
        self.inside: np.ndarray | None = None  # (span,) bool; None where everything from start to end belongs to x
        if not x.is_contiguous():
            offsets = torch.arange(span).as_strided(x.shape, x.stride(), 0) if span else torch.empty(0)
            self.inside = np.zeros(span, dtype=bool)
            self.inside[offsets.reshape(-1).numpy()] = True
            self.inside = None if self.inside.all() else self.inside

    def contains(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """For each address, whether `size` bytes from there on are elements of this tensor, or a part of one."""
        within = (addresses >= self.start) & (addresses + size <= self.end)
        if self.inside is not None and within.any():
            for byte in {*range(0, size, self.size), size - 1}:  # a wide access may begin inside, and leave it
                within[within] = self.inside[self._elements(addresses[within] + byte)]
        return within

    def miss(self, address: int) -> tuple[int, str]:
        """How far an address is from this tensor, in bytes and in words."""
        if address < self.start:
            distance = self.start - address
            return distance, f"{_elements(-(-distance // self.size))} before the beginning of"
        if address >= self.end:
            distance = address - self.end
            return distance, f"{_elements(distance // self.size + 1)} past the end of"
        return 0, f"at offset {(address - self.start) // self.size}, between the elements of"

    def _elements(self, addresses: np.ndarray) -> np.ndarray:
        return ((addresses - self.start) // self.size).astype(np.int64)


def _elements(n: int) -> str:
    return f"{n:,} element{'s' * (n != 1)}"


def _bytes_of(value, hit: np.ndarray, size: int) -> np.ndarray:
    """The bytes that a store stores in these lanes, (lanes, size)."""
    data = np.ascontiguousarray(np.broadcast_to(value.data, hit.shape)[hit])
    held = data.view(np.uint8).reshape(len(data), -1)[:, :size]
    return np.pad(held, ((0, 0), (0, size - held.shape[1])))


class Watcher:
    """Makes the hooks, and knows the launch that is running: its kernel, its tensors and their tags."""

    def __init__(self, report: Report, named: list[Region], interpreter):
        self.report, self.named, self.interpreter = report, named, interpreter
        self.regions, self.kernel = named, ""
        self.tags: dict[int, int] = {}  # of the storages
        self.shadows: dict[int, Shadow] = {}  # of the regions, by id
        self.clock = Clock()
        self.counted = False
        self.seen: set[tuple] = set()

    def hook(self, name: str, original):
        """What takes the place of the interpreter's method of that name, which is `original`."""
        watcher = self

        def launch(executor, *args, **kwargs):
            with watcher.launch(executor, args, kwargs):
                return original(executor, *args, **kwargs)

        def convert(argument):
            converted = original(argument)
            if hasattr(argument, "data_ptr"):
                watcher.tag(converted.handle, getattr(argument, "base", argument))
            return converted

        def load(builder, ptrs, mask, other, *rest, **options):
            watcher.report.operations["load"] += 1
            asked = mask.data
            ptrs, mask = watcher.checked(builder, ptrs, asked, LOADS)
            got = original(builder, ptrs, mask, other, *rest, **options)
            if other is None and np.issubdtype(got.data.dtype, np.floating):  # on a GPU, what is masked is undefined
                got.data = np.where(np.broadcast_to(asked, got.data.shape), got.data, np.nan).astype(got.data.dtype)
            return got

        def store(builder, ptrs, value, mask, *rest, **options):
            watcher.report.operations["store"] += 1
            ptrs, mask = watcher.checked(builder, ptrs, mask.data, STORES, value)
            return original(builder, ptrs, value, mask, *rest, **options)

        def atomic(builder, operation, ptrs, value, mask, *rest, **options):
            ptrs, mask = watcher.checked(builder, ptrs, mask.data, ATOMICS)
            return original(builder, operation, ptrs, value, mask, *rest, **options)

        def compare_and_swap(builder, ptrs, *rest, **options):
            ptrs, mask = watcher.checked(builder, ptrs, np.True_, ATOMICS)
            if not mask.data.all():  # it has no mask that could keep it from there, so the kernel cannot go on
                raise IndexError("atomic_cas outside its tensor")
            return original(builder, ptrs, *rest, **options)

        def dot(builder, a, b, d, input_precision, *rest, **options):
            watcher.report.operations["dot"] += 1
            kind = str(a.dtype.scalar)
            if kind == "fp32" and "IEEE" not in str(input_precision):
                kind = "tf32"
            watcher.report.multiply_adds[kind] += int(np.prod([*a.data.shape, b.data.shape[-1]]))
            return original(builder, a, b, d, input_precision, *rest, **options)

        def barrier(builder, *rest, **options):
            watcher.clock.barrier()
            return original(builder, *rest, **options)

        hook = {
            "__call__": launch,
            "create_barrier": barrier,
            "_implicit_cvt": convert,
            "create_masked_load": load,
            "create_masked_store": store,
            "create_atomic_rmw": atomic,
            "create_atomic_cas": compare_and_swap,
            "create_dot": dot,
        }[name]
        hook.__wrapped__ = original
        return hook

    @contextmanager
    def launch(self, executor, args, kwargs) -> Iterator[None]:
        """Watch one launch: its tensors are what its kernel may touch, besides the named ones."""
        given = list(zip(executor.arg_names, args, strict=False)) + list(kwargs.items())
        # An argument may be a tuple, and hold a tensor that a descriptor or triton.reinterpret wraps.
        leaves = [(name, getattr(x, "base", x)) for name, value in given for x in tree_leaves(value)]
        tensors = [(name, x) for name, x in leaves if isinstance(x, Tensor)]
        for name, x in tensors:
            if x.device.type != "cpu":
                raise ValueError(f"{name} must be on the CPU for its kernel to be watched, got {str(x.device)!r}")
        names = {(r.start, r.x.shape, r.x.stride()): r for r in self.named}
        own = [names.get((x.data_ptr(), x.shape, x.stride())) or Region(name, x) for name, x in tensors]
        outer = self.regions, self.kernel, self.tags, self.shadows, self.clock
        self.tags, self.clock = {}, Clock()
        self.regions = list({id(region): region for region in own + self.named}.values())
        self.kernel, self.counted = executor.fn.__name__, False
        pieces = [(region.start, region.end, region.size) for region in self.regions]
        self.shadows = {id(r): shadow for r, shadow in zip(self.regions, shadows(pieces), strict=True)}
        try:
            yield
        finally:
            self.regions, self.kernel, self.tags, self.shadows, self.clock = outer

    def tag(self, handle, x: Tensor) -> None:
        """Write the number of x's storage into the upper bits of a pointer to it."""
        tag = self.tags.setdefault(x.untyped_storage().data_ptr(), len(self.tags) + 1)
        handle.data = (handle.data & ADDRESS) | np.uint64(tag << TAG_SHIFT)

    def checked(self, builder, ptrs, mask: np.ndarray, kind: str, value=None):
        """The pointers without their tags, and the mask without the lanes that are astray, which are noted."""
        active = np.broadcast_to(mask, ptrs.data.shape).astype(bool)
        addresses, tags = (ptrs.data & ADDRESS).astype(np.int64), ptrs.data >> np.uint64(TAG_SHIFT)
        size = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
        program = tuple(int(i) for i in builder.grid_idx)
        index = np.ravel_multi_index(program, [int(n) for n in builder.grid_dim])
        self.clock.enter(int(index))
        if not self.counted:
            self.report.programs += int(np.prod(builder.grid_dim))
            self.counted = True
        left = active.copy()
        for region in self.regions:
            own = (tags == self.tags.get(region.storage, 0)) | (tags == 0)  # 0: the kernel found it in memory
            hit = left & own & region.contains(addresses, size)
            if hit.any():
                traffic = self.report.bytes_loaded if kind == LOADS else self.report.bytes_stored
                traffic[region.name] += int(hit.sum()) * size
                for meeting in self.shadows[id(region)].access(
                    kind, addresses[hit], size, np.flatnonzero(hit), hit.shape, self.clock,
                    lambda hit=hit: _bytes_of(value, hit, size),
                ):  # fmt: skip
                    lanes = np.zeros_like(hit)
                    lanes[hit] = meeting.lanes
                    self.note_meeting(kind, meeting, program, lanes, region.name)
                left &= ~hit
        if kind == ATOMICS:
            self.clock.after_atomic = True
        if left.any():
            first, tag = int(addresses[left][0]), int(tags[left][0])
            meant = [r for r in self.regions if tag and self.tags.get(r.storage) == tag] or self.regions
            region = min(meant, key=lambda r: r.miss(first)[0], default=None)
            missed, where = (region.name, region.miss(first)[1]) if region else ("any tensor", "far from")
            self.note(LOAD if kind == LOADS else STORE, program, left, missed, where)
        handle = self.interpreter.TensorHandle
        return handle(addresses.astype(np.uint64), ptrs.dtype), handle(active & ~left, load_triton()[1].int1)

    def note_meeting(self, kind: str, meeting: Meeting, program: tuple, lanes: np.ndarray, tensor: str) -> None:
        """A race, or what may be one."""
        did = {LOADS: "loaded from", STORES: "stored to", ATOMICS: "changed atomically"}[kind]
        had = {STORES: "stored", LOADS: "loaded", ATOMICS: "changed it atomically"}[meeting.what]
        race, where = (READ_RACE if LOADS in (kind, meeting.what) else RACE), f"where {meeting.who} had {had}"
        if meeting.who == "a lane":
            race, where = LANE_RACE, "at one address, different values"
        elif meeting.who == "this program":
            where += ", perhaps by another thread; tl.debug_barrier() would put them in order"
        elif not meeting.certain:
            where += ", after an atomic operation that may have put them in order"
        among = self.report.findings if meeting.certain else self.report.undecided
        self.note(race, program, lanes, tensor, where, did, among)

    def note(
        self, kind: str, program: tuple, lanes: np.ndarray, tensor: str, where: str, did: str = "stored to",
        among: list[Finding] | None = None,
    ) -> None:  # fmt: skip
        among = self.report.findings if among is None else among
        line, source = self._line()
        # A loop repeats itself: once a line and program is enough. What is undecided is so in every program.
        key = kind, self.kernel, program if among is self.report.findings else where, line, tensor
        if key not in self.seen and len(among) < MOST_FINDINGS:
            self.seen.add(key)
            flat = tuple(int(i) for i in np.flatnonzero(lanes))
            among.append(Finding(kind, self.kernel, program, flat, tensor, where, line, source, did))

    def _line(self) -> tuple[int | None, str]:
        """The line of the kernel that is running: its frame is the nearest one outside Triton and this file."""
        import linecache

        frame = sys._getframe(1)
        while frame is not None and frame.f_code.co_name != self.kernel:
            frame = frame.f_back
        if frame is None:
            return None, ""
        return frame.f_lineno, linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
