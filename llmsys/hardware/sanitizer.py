"""A sanitizer for Triton kernels: the interpreter, watched.

A kernel that reads or writes outside its tensors is the commonest mistake in GPU programming, and the quietest: on a
GPU the neighbouring bytes are usually there, and in the interpreter they are somebody's Python objects. While `watch`
is active, every load and store of an interpreted kernel is looked at before it happens:

    with watch(x=x) as report:
        softmax_kernel[(rows,)](x, y, …)
    print(report)

- The tensors that a launch is given, and those named in `watch`, are the only memory that may be touched. A tensor is
  its *elements*: the gaps between the rows of a slice are outside. A lane that goes astray is masked off, so that the
  process survives, and is reported with its kernel, its program, its line, and by how far it missed which tensor.
- A pointer knows its tensor. Every pointer that a kernel is given carries the number of its storage in the upper bits,
  which pointer arithmetic leaves alone (Arm's memory tagging extension does the same in hardware). So a lane that runs
  past the end of x is astray even where another tensor happens to lie next door.
- Races are reported, down to the byte: a program that stores what another one stores or loads, and two lanes of one
  store that give an address different values. One after the other, as the interpreter runs programs, they give an
  answer; on a GPU, nobody knows which. Where an order cannot be seen here, the report says so (`races`), and no longer
  that there are no races.
- The bytes that are loaded from and stored to each tensor are counted, masked lanes left out, and so are the
  multiply-adds of tl.dot, by the type in which a GPU multiplies: "tf32" for float32 without input_precision="ieee".

Block pointers and tensor descriptors come down to the same loads and stores, and are watched with them.

The interpreter's internals are touched in this file and nowhere else (Triton 3.6 to 3.9). Where they look different,
`available()` is false, and `watch` watches nothing: kernels then run as they always do.
"""

import inspect
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from llmsys.hardware.races import ATOMICS, LOADS, STORES, Clock, Meeting, Shadow, shadows
from llmsys.hardware.tier import interpreting, load_triton, triton_installed

LOAD, STORE, RACE = "load outside", "store outside", "two programs stored to one address"
READ_RACE = "one program stored what another one loaded"
LANE_RACE = "two lanes of one store gave one address two values"
MOST_FINDINGS = 50  # a kernel that is wrong everywhere does not need more to be understood
TAG_SHIFT = 52  # no user-space address has so many bits
ADDRESS = np.uint64((1 << TAG_SHIFT) - 1)


@dataclass(frozen=True)
class Finding:
    """One thing that went wrong in one load or store of one program."""

    kind: str  # LOAD, STORE, RACE, READ_RACE or LANE_RACE
    kernel: str
    program: tuple[int, int, int]
    lanes: tuple[int, ...]  # flat positions in the tile
    tensor: str  # the one that was missed, or in which there is a race
    where: str  # "3 elements past its end"
    line: int | None = None
    source: str = ""
    did: str = "stored to"  # what the lanes of a race did

    def __str__(self) -> str:
        lanes = f"{len(self.lanes)} lane{'s' * (len(self.lanes) > 1)}"
        at = f"\n    line {self.line}: {self.source}" if self.source else ""
        if self.kind in (RACE, READ_RACE, LANE_RACE):
            return f"{self.kernel}, program {self.program}: {lanes} {self.did} {self.tensor} {self.where}{at}"
        what = f"{self.kind} its tensor, {lanes}, {self.where} {self.tensor}"
        return f"{self.kernel}, program {self.program}: {what}{at}"


@dataclass
class Report:
    """What the kernels did to memory inside a `watch`."""

    findings: list[Finding] = field(default_factory=list)
    undecided: list[Finding] = field(default_factory=list)  # races, or none: the order cannot be seen here
    bytes_loaded: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    bytes_stored: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    multiply_adds: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # by tl.dot: "fp16" -> how many
    operations: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # "load", "store", "dot" -> how many
    programs: int = 0  # in all launches together

    @property
    def ok(self) -> bool:
        """Nothing was touched that should not be."""
        return not self.findings

    def __str__(self) -> str:
        traffic = [
            f"  {name}: {self.bytes_loaded.get(name, 0):,} bytes loaded, {self.bytes_stored.get(name, 0):,} stored"
            for name in dict.fromkeys([*self.bytes_loaded, *self.bytes_stored])
        ]
        found = _lines(self.findings)
        verdict = "no access outside the tensors, no races" if self.ok else "memory errors:"
        if self.undecided:
            verdict = "no access outside the tensors" if self.ok else verdict
            found += ["  whether there are races here is not known: their order cannot be seen in the interpreter"]
            found += _lines(self.undecided)
        if not self.programs:
            verdict = "nothing was watched"
        return "\n".join([f"{self.programs} programs: {verdict}", *found, *traffic])


def _lines(findings: list[Finding]) -> list[str]:
    more = ["  …"] if len(findings) >= MOST_FINDINGS else []
    return [f"  {finding}" for finding in findings] + more


def available() -> bool:
    """Whether kernels run in Triton's interpreter here, and its internals are those that this file knows."""
    return triton_installed() and interpreting() and _interpreter() is not None


@contextmanager
def watch(**tensors: Tensor) -> Iterator[Report]:
    """Watch every interpreted kernel that is launched in the block.

    Kernels may touch `tensors` as well as their own arguments. A tensor is reported under the name that it has here, or
    else under the name of the kernel's argument.

    Raises ValueError for anything but tensors, and at the launch for tensors that are not on the CPU.
    """
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    report = Report()
    if not available():
        yield report
        return
    interpreter = _interpreter()
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    before = {
        (owner, name): owner.__dict__[name]
        for owner, names in (
            (builder, [*_HOOKED, *_HOOKED_IF_THERE]), (executor, ("__call__",)), (interpreter, ("_implicit_cvt",)),
        )
        for name in names
        if name not in _HOOKED_IF_THERE or name in owner.__dict__
    }
    watcher = _Watcher(report, [_Region(name, x) for name, x in tensors.items()], interpreter)
    try:
        for (owner, name), original in before.items():
            setattr(owner, name, watcher.hook(name, original))
        with _no_idle_overflow_checks(interpreter):
            yield report
    finally:
        for (owner, name), original in before.items():
            setattr(owner, name, original)


@contextmanager
def _no_idle_overflow_checks(interpreter) -> Iterator[None]:
    """Where its `debug` option is off, the interpreter computes for every sum and product of integers whether it
    overflows, and then looks at none of it. That is a third of a kernel's time: leave it out."""
    builder = getattr(interpreter, "interpreter_builder", None)
    options = getattr(builder, "options", None)
    idle = getattr(options, "sanitize_overflow", False) and not getattr(options, "debug", True)
    if idle:
        builder.options = replace(options, sanitize_overflow=False)
    try:
        yield
    finally:
        if idle:
            builder.options = options


_HOOKED = {  # methods of the interpreter's builder, and the first names of their parameters
    "create_masked_load": ["self", "ptrs", "mask", "other"],
    "create_masked_store": ["self", "ptrs", "value", "mask"],
    "create_atomic_rmw": ["self", "rmwOp", "ptr", "val", "mask"],
    "create_atomic_cas": ["self", "ptr", "cmp", "val"],
    "create_dot": ["self", "a", "b", "d", "input_precision"],
}


_HOOKED_IF_THERE = {"create_barrier": ["self"]}
"""The same; where there is none, a kernel with a barrier is watched as if it had none."""


def _interpreter():
    """Triton's interpreter module; None if what is hooked here does not look as in the versions that are known."""
    import triton.runtime.interpreter as interpreter

    methods = getattr(getattr(interpreter, "InterpreterBuilder", None), "__dict__", {})
    for name, parameters in _HOOKED.items():
        # A watch that is already active has put its own functions there: those are known.
        method = inspect.unwrap(methods[name]) if name in methods else None
        if method is None or list(inspect.signature(method).parameters)[: len(parameters)] != parameters:
            return None
    return interpreter if hasattr(interpreter, "GridExecutor") and hasattr(interpreter, "_implicit_cvt") else None


class _Region:
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


class _Watcher:
    """Makes the hooks, and knows the launch that is running: its kernel, its tensors and their tags."""

    def __init__(self, report: Report, named: list[_Region], interpreter):
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
        own = [names.get((x.data_ptr(), x.shape, x.stride())) or _Region(name, x) for name, x in tensors]
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
