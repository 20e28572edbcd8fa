"""What travels between processes: functions, their arguments, results, exceptions.

cloudpickle carries functions by value where no module of that name can be imported elsewhere: a notebook's cells, a
script's own functions, closures. A tensor travels as its numbers in CPU memory, whatever device it is on, without what
else its storage holds and without its graph. What cannot be pickled is named, by the way that leads to it.
"""

import importlib
import io
import pickle
import sys
import types
from collections.abc import Iterator, Mapping

import cloudpickle


class NotPicklable(TypeError):
    """Something cannot be sent to another process. The message says what, and where it is."""


class _Pickler(cloudpickle.Pickler):
    def reducer_override(self, value):
        torch = sys.modules.get("torch")  # where there are tensors, it has been imported
        if torch is not None and isinstance(value, torch.Tensor) and type(value) in (torch.Tensor, torch.nn.Parameter):
            compact = _on_the_cpu(torch, value)
            if _is_plain(torch, compact):  # torch's own way copies the numbers several times
                numbers = pickle.PickleBuffer(compact.detach().reshape(-1).view(torch.uint8).numpy())
                kind = "parameter" if type(value) is torch.nn.Parameter else "tensor"
                return _tensor, (kind, numbers, compact.dtype, tuple(compact.shape), compact.requires_grad)
            if compact is not value:
                return compact.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        if _is_module_of_own_class(value):
            return importlib.import_module, (value.__name__,)
        return super().reducer_override(value)


def _on_the_cpu(torch, tensor):
    """The tensor itself if it is on the CPU, alone in its storage and without a graph; else a copy that is."""
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        return tensor
    alone = tensor.untyped_storage().nbytes() <= tensor.numel() * tensor.element_size()
    if tensor.device.type == "cpu" and tensor.is_leaf and alone:
        return tensor
    copy = tensor.detach().cpu()
    copy = copy.clone() if copy.untyped_storage().nbytes() > copy.numel() * copy.element_size() else copy
    if type(tensor) is torch.nn.Parameter:
        return torch.nn.Parameter(copy, requires_grad=tensor.requires_grad)
    return copy.requires_grad_(tensor.requires_grad and tensor.is_leaf)


def _is_plain(torch, tensor) -> bool:
    """Whether a tensor is nothing but its numbers, one after another."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.is_contiguous()
    marked = tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or tensor.__dict__
    return plain and not marked and tensor.numel() > 0


def _is_module_of_own_class(value) -> bool:
    """Whether it is a module whose class is not Python's, which cloudpickle does not take for a module.

    torch's settings are some. A function that uses `torch.distributed`, and says `.config` of anything, takes along
    `torch.distributed.config`: cloudpickle goes by names, lest a module that the function needs be missing there.
    """
    own = isinstance(value, types.ModuleType) and type(value) is not types.ModuleType
    return own and sys.modules.get(value.__name__) is value and getattr(value, "__spec__", None) is not None


def _tensor(kind: str, numbers: bytearray, dtype, shape: tuple[int, ...], requires_grad: bool):
    """The tensor again, over the bytes that have arrived."""
    import torch  # here: `import llmsys.parallel.ranks` stays quick

    tensor = torch.frombuffer(numbers, dtype=dtype).view(shape)
    if kind == "parameter":
        return torch.nn.Parameter(tensor, requires_grad=requires_grad)
    return tensor.requires_grad_(requires_grad)


def dumps(value: object, what: str) -> bytes:
    """`value` as bytes. Raises NotPicklable, which calls the value `what`: "the function", "rank 2's result"."""
    try:
        return _dumps(value)
    except Exception as error:  # pickling calls anybody's __reduce__, which raises what it likes
        where, culprit, reason = _culprit(value, what, error)
        kind = f"{type(culprit).__module__}.{type(culprit).__qualname__}".removeprefix("builtins.")
        raise NotPicklable(
            f"{where} cannot be sent to another process: it is a {kind} ({type(reason).__name__}: {reason}). "
            "Make it inside the function, or pass what it is made from."
        ) from None


def loads(data: bytes | bytearray) -> object:
    """What `dumps` has made bytes of."""
    return pickle.loads(data)


def _dumps(value: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


def _culprit(value: object, where: str, error: Exception, depth: int = 8) -> tuple[str, object, Exception]:
    """The innermost part of a value that cannot be pickled: where it is, itself, and the error."""
    for name, part in _parts(value, where) if depth else ():
        try:
            _dumps(part)
        except Exception as inner:
            return _culprit(part, name, inner, depth - 1)
    return where, value, error


def _parts(value: object, where: str) -> Iterator[tuple[str, object]]:
    """What a value is made of, each with its name."""
    if isinstance(value, types.MethodType):
        yield f"the object of {where}", value.__self__
    elif isinstance(value, types.FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        filled = ((name, cell) for name, cell in cells if _is_filled(cell))
        yield from ((f"`{name}`, a variable that {where} closes over,", cell.cell_contents) for name, cell in filled)
        for name in _names(value.__code__):
            if name in value.__globals__:
                yield f"`{name}`, a global variable that {where} uses,", value.__globals__[name]
        yield from ((f"a default of {where}", default) for default in value.__defaults__ or ())
    elif isinstance(value, Mapping):
        yield from ((f"{where}[{key!r}]", each) for key, each in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"{where}[{n}]", each) for n, each in enumerate(value))
    elif not isinstance(value, (type, types.ModuleType)):
        yield from ((f"{where}.{name}", each) for name, each in getattr(value, "__dict__", {}).items())


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return False
    return True


def _names(code: types.CodeType) -> Iterator[str]:
    """The names that a function's code looks up, those of the functions inside it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
