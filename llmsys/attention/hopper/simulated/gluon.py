"""The stand-in for `llmsys.attention.hopper.gluon` on a laptop: the same names, made of torch and `processor`.

The kernels are plain Python here. Values in registers are torch tensors, scalars are numbers or tensors without
dimensions, and layouts mean nothing. A copy into shared memory is made when the processor draws it; until then the tile
is full of NaN. A product is made when it is started or when it is waited for, whichever is drawn: so a tile that is
overwritten too early gives wrong numbers. A function or class here has the meaning and the arguments that it has in
Gluon; what breaks a rule raises `Race`.
"""

import math
from types import SimpleNamespace

import torch
from torch import Tensor

from llmsys.attention.hopper.simulated.processor import here, pause
from llmsys.hardware.barrier import Barrier, Race

# Shared memory, barriers, the copy engine


class Shared:
    """A view of shared memory: a tensor, or a list of barriers."""

    def __init__(self, data):
        self.data = data

    shape = property(lambda self: list(self.data.shape))
    dtype = property(lambda self: self.data.dtype)

    def index(self, i):
        return self.data[int(i)] if isinstance(self.data, list) else Shared(self.data[int(i)])

    def reshape(self, shape):
        return Shared(self.data.view(list(shape)))

    def permute(self, order):
        return Shared(self.data.permute(order))

    def slice(self, start, length, dim=0):
        return Shared(self.data.narrow(dim, start, length))

    def load(self, layout):
        pause()
        return _value(self.data.clone())

    def store(self, x):
        for warp in here.processor.warps:
            if any(self.overlaps(each) for product in warp.products for each in product.reads):
                raise Race(f"{here.warp.name} stores into a tile that a product of {warp.name} still reads")
        self.data.copy_(x)
        here.warp.unfenced = True
        pause()

    def overlaps(self, other: "Shared") -> bool:
        mine, theirs = ((x.data_ptr(), x.data_ptr() + x.numel() * x.element_size()) for x in (self.data, other.data))
        return mine[0] < theirs[1] and theirs[0] < mine[1]


class mbarrier:
    @staticmethod
    def MBarrierLayout():
        return Barrier

    @staticmethod
    def init(barrier, count):
        barrier.count = barrier.missing = count

    @staticmethod
    def expect(barrier, nbytes):
        barrier.expect_bytes(nbytes)
        pause()

    @staticmethod
    def arrive(barrier, count=1):
        barrier.arrive(count)
        pause()

    @staticmethod
    def wait(barrier, parity):
        parity = int(parity)
        what = f"{barrier.name} to end a phase of parity {parity}; it is in phase {barrier.phase}"
        here.warp.wait(lambda: barrier.wait(parity), what)


class Descriptor:
    """What the copy engine knows of a tensor x: its shape, and the shape of a tile.

    rows    a number, for tiles of so many rows of a tensor (B, H, T, D); or a tile's shape
    """

    layout = None

    def __init__(self, x: Tensor, rows: int | list[int]):
        self.x, self.dtype = x, x.dtype
        shape = [1, 1, rows, x.shape[3]] if isinstance(rows, int) else rows
        self.block_type = SimpleNamespace(shape=shape, nbytes=math.prod(shape) * x.element_size())

    def inside(self, at) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The part of the tile at the coordinates `at` that is not beyond the tensor's end, as slices of the tensor and
        of the tile."""
        begin = [int(n) for n in at]
        sizes = [
            max(min(n, size - b), 0) for b, n, size in zip(begin, self.block_type.shape, self.x.shape, strict=True)
        ]
        return tuple(slice(b, b + n) for b, n in zip(begin, sizes, strict=True)), tuple(slice(n) for n in sizes)


class tma:
    """The copy engine."""

    @staticmethod
    def async_copy_global_to_shared(desc, at, barrier, tile):
        for warp in here.processor.warps:
            if any(tile.overlaps(x) for product in warp.products for x in product.reads):
                raise Race(f"a copy is started into a tile that a product of {warp.name} still reads")
        in_tensor, in_tile = desc.inside(at)
        tile.data.fill_(math.nan)

        def copy():
            tile.data.zero_()
            tile.data[in_tile] = desc.x[in_tensor]
            barrier.copied(desc.block_type.nbytes)

        here.processor.copies.append(copy)
        pause()

    @staticmethod
    def async_copy_shared_to_global(desc, at, tile, add=False):
        warp = here.warp
        if warp.unfenced:
            raise Race(f"{warp.name}: no fence between storing a tile and having the copy engine read it")
        in_tensor, in_tile = desc.inside(at)
        warp.stores += 1

        def copy():
            desc.x[in_tensor] = tile.data[in_tile] + (desc.x[in_tensor] if add else 0)
            warp.stores -= 1

        here.processor.copies.append(copy)
        pause()

    @staticmethod
    def store_wait(pending):
        warp = here.warp
        warp.wait(lambda: warp.stores <= pending, "the copy engine to read what it stored")


def add_to_memory(desc, at, tile):
    tma.async_copy_shared_to_global(desc, at, tile, add=True)


def fence_async_shared():
    if here.warp:
        here.warp.unfenced = False


def launch_dependents():
    """Programs are simulated one after another: no kernel is early here."""


# The tensor cores


class _Product:
    """a · b + c in fp32, which may not have been made yet; until it was waited for, using it raises Race.

    Only the next product may add to it: the tensor cores make them in the order in which they were started. Not even
    its layout can be asked for: in Gluon, too, that belongs to the result.
    """

    def __init__(self, a, b, c, use_acc):
        self.reads = [x for x in (a, b) if isinstance(x, Shared)]
        self._operands, self.result = (a, b, c if use_acc else None), None

    def __getattr__(self, name):
        raise Race(f"{self._used()}: wait for it before its .{name}")

    def _under_way(self, *others):
        raise Race(f"{self._used()}: warpgroup_mma_wait first")

    def _used(self):
        running = here.warp.products
        which = f" ({running.index(self) + 1} of {len(running)}, as they were started)" if self in running else ""
        return f"{here.warp.name}: a product is used that may still be under way{which}"

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __getitem__ = _under_way

    def make(self):
        """Compute it, unless that has been done."""
        if self.result is None:
            a, b = (x.data if isinstance(x, Shared) else x for x in self._operands[:2])
            self.result = _value(a.float() @ b.float())
            c = self._operands[2]
            if isinstance(c, _Product):
                c.make()
                c = c.result
            if c is not None:
                self.result += c


def warpgroup_mma(a, b, acc, use_acc=True, is_async=False):
    dtypes = [x.data.dtype if isinstance(x, Shared) else x.dtype for x in (a, b)]
    if dtypes[0] != dtypes[1]:
        raise TypeError(f"warpgroup_mma multiplies operands of one dtype, got {dtypes[0]} and {dtypes[1]}")
    product = _Product(a, b, acc, use_acc)
    here.warp.products.append(product)
    if here.processor.draw.random() < 0.5:
        for each in here.warp.products:  # in the order in which they were started
            each.make()
    pause()
    return product


def warpgroup_mma_wait(pending, deps):
    products = here.warp.products
    while len(products) > pending:
        products.pop(0).make()
    # What is still under way can be added to by another product, and any other use of it raises Race.
    results = [each.result if isinstance(each, _Product) and each not in products else each for each in deps]
    return results[0] if len(results) == 1 else tuple(results)


# The language


class _Value(Tensor):
    """A tensor in registers. Kernels ask for its layout; here that is None."""

    type = SimpleNamespace(layout=None)

    def split(self):
        """The two halves of a tensor whose last dimension is 2."""
        return self.unbind(-1)


def _value(x: Tensor) -> Tensor:
    return x.as_subclass(_Value)


class Pointer:
    """A place in memory, or a tensor of them."""

    def __init__(self, memory: Tensor, at=0):
        self.memory, self.at = memory, at

    dtype = property(lambda self: SimpleNamespace(element_ty=self.memory.dtype))

    def __add__(self, n):
        return Pointer(self.memory, self.at + n)


class gluon:
    @staticmethod
    def jit(function=None, **options):
        return function or (lambda function: function)

    constexpr_function = staticmethod(lambda function: function)


class gl:
    """Gluon's language, as much of it as the kernels use."""

    tensor, shared_memory_descriptor = Tensor, Shared
    float32, float16, bfloat16 = torch.float32, torch.float16, torch.bfloat16
    int32, int64 = torch.int32, torch.int64
    constexpr = staticmethod(lambda x: x)
    static_range = range
    exp2, log2 = torch.exp2, torch.log2
    NVMMADistributedLayout = NVMMASharedLayout = DotOperandLayout = SliceLayout = staticmethod(lambda *a, **k: None)
    BlockedLayout = SwizzledSharedLayout = NVMMASharedLayout
    to_tensor = staticmethod(torch.as_tensor)

    @staticmethod
    def arange(start, stop, layout=None):
        return _value(torch.arange(start, stop))

    @staticmethod
    def full(shape, value, dtype, layout=None):
        return _value(torch.full(shape, value, dtype=dtype))

    @staticmethod
    def zeros(shape, dtype, layout=None):
        return _value(torch.zeros(shape, dtype=dtype))

    @staticmethod
    def maximum(a, b):
        return torch.maximum(torch.as_tensor(a), torch.as_tensor(b))

    @staticmethod
    def minimum(a, b):
        return torch.minimum(torch.as_tensor(a), torch.as_tensor(b))

    @staticmethod
    def where(condition, a, b):
        return _value(torch.where(*map(torch.as_tensor, (condition, a, b))))

    @staticmethod
    def max(x, axis):
        return x.amax(axis)

    @staticmethod
    def sum(x, axis):
        return torch.sum(x, axis)

    @staticmethod
    def convert_layout(x, layout):
        return x

    @staticmethod
    def associative_scan(x, axis, combine):
        for i in range(1, x.shape[axis]):
            x = x.index_copy(axis, torch.tensor([i]), combine(x.narrow(axis, i - 1, 1), x.narrow(axis, i, 1)))
        return x

    @staticmethod
    def load(pointer, mask=True, other=0, cache_modifier=""):
        at = torch.as_tensor(pointer.at)
        there = torch.as_tensor(mask).broadcast_to(at.shape)
        x = torch.full(at.shape, other, dtype=pointer.memory.dtype)
        x[there] = pointer.memory[at[there]]
        return _value(x)

    @staticmethod
    def store(pointer, x, mask=True):
        at = torch.as_tensor(pointer.at)
        there = torch.as_tensor(mask).broadcast_to(at.shape)
        pointer.memory[at[there]] = torch.as_tensor(x).broadcast_to(at.shape)[there].to(pointer.memory.dtype)

    @staticmethod
    def atomic_add(pointer, x, sem):
        before = pointer.memory[int(pointer.at)].clone()
        pointer.memory[int(pointer.at)] += x
        pause()
        return before

    @staticmethod
    def program_id(axis):
        return here.processor.program

    @staticmethod
    def num_programs(axis):
        return here.processor.programs

    @staticmethod
    def allocate_shared_memory(dtype, shape, layout):
        if layout is Barrier:
            return Shared([Barrier(1, f"barrier {i} of {shape[0]}") for i in range(shape[0])])
        return Shared(torch.full(shape, math.nan, dtype=dtype))

    @staticmethod
    def warp_specialize(roles, warps, registers):
        names = [f"{function.__name__} {n}" for n, (function, _) in enumerate(roles)]
        here.processor.run({name: lambda role=role: role[0](*role[1]) for name, role in zip(names, roles, strict=True)})


def aggregate(cls):
    """The class itself; its barriers are named after it and their attribute, for messages: "Ring.full[0]"."""
    set_up = cls.__init__

    def __init__(self, *arguments):
        set_up(self, *arguments)
        for name, value in vars(self).items():
            for n, each in enumerate(value.data if isinstance(getattr(value, "data", None), list) else ()):
                each.name = f"{cls.__name__}.{name}[{n}]"

    cls.__init__ = __init__
    return cls


wait_for_warpgroup = pause
