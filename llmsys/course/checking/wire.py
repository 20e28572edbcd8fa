"""Frames between the grader and a learner's process: a JSON header and raw bytes, nothing that can be executed.

A pickle is a program, and reading one from a process that runs somebody else's code hands that code the grader. So
what crosses the pipe is plain data (`llmsys.course.checking.compare`) in frames of one form:

    4 bytes  the word LLMS          header   JSON: the value, with each tensor as its dtype and shape
    4 bytes  length of the header   payload  the elements of all tensors, one after another
    8 bytes  length of the payload

In the header None, bools, ints and strings are themselves; everything else is an object with one key, as in
{"float": "0x1.8p+0"}, {"tuple": [...]}, {"dict": [[key, value], ...]}, {"tensor": ["float32", [2, 3]]}.

The grader's side believes nothing: every length is bounded before anything of that length is read, and every type,
shape, size and number is checked before a tensor is made of it. Whatever is wrong is a `ProtocolError` that says what.
Arguments keep their strides on the way to the learner (a kernel must meet the row stride that the check meant);
results have to come back contiguous, and so have no strides to lie about.
"""

import json
import math
import os
import struct
from collections.abc import Iterator

import torch
from torch import Tensor

MAGIC = b"LLMS"
HEADER_LIMIT = 1 << 20  # bytes
PAYLOAD_LIMIT = 128 << 20
DEPTH_LIMIT = 32  # values within values
INT_BITS = 512  # an int any longer is no answer to anything, and slow to print

_PREFIX = struct.Struct("<4sIQ")
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128,
    )
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# The worker packs after the learner's code has run. These are the functions as they were before it.
_dumps, _type, _len = json.dumps, type, len
_contiguous, _view, _as_strided = Tensor.contiguous, Tensor.view, Tensor.as_strided


class ProtocolError(ValueError):
    """What came through the pipe is not a frame, or not a value that may come through it."""


def pack(value) -> bytes:
    """A frame that holds this plain data. Raises ProtocolError where it is not plain, or too large."""
    payload: list[bytes] = []
    header = _dumps(_encode(value, payload), separators=(",", ":"), allow_nan=False).encode()
    body = b"".join(payload)
    if _len(header) > HEADER_LIMIT or _len(body) > PAYLOAD_LIMIT:
        raise ProtocolError(f"{_size(_len(header))} and {_size(_len(body))} of tensors are too much to send")
    return _PREFIX.pack(MAGIC, _len(header), _len(body)) + header + body


def unpack(header: bytes, payload: bytes, *, strides: bool = False):
    """The value in a frame. Tensors with strides of their own are only let in where `strides` is true."""
    try:
        tree = json.loads(header.decode("utf-8"), parse_constant=_no_constant, parse_float=_no_constant)
    except RecursionError:
        raise ProtocolError("its header is nested too deeply") from None
    except ValueError as error:
        raise ProtocolError(f"its header is not JSON ({error})") from None
    rest = memoryview(payload)
    value, rest = _decode(tree, rest, strides, 0)
    if rest.nbytes:
        raise ProtocolError(f"{rest.nbytes} bytes of its payload belong to no tensor")
    return value


class Frames:
    """Bytes in, as they arrive; frames out. Refuses what cannot become a frame at the earliest byte that shows it."""

    def __init__(self):
        self._buffer = bytearray()

    @property
    def waiting(self) -> int:
        """Bytes that have come and belong to no frame yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (header, payload) of each frame that these bytes complete. Raises ProtocolError."""
        self._buffer += data
        while (sizes := self._sizes()) and len(self._buffer) >= sum(sizes):
            start, end = sizes[0] + sizes[1], sum(sizes)
            header, payload = bytes(self._buffer[sizes[0] : start]), bytes(self._buffer[start:end])
            del self._buffer[:end]
            yield header, payload

    def _sizes(self) -> tuple[int, int, int] | None:
        """The lengths of prefix, header and payload, once the prefix is there."""
        begin = bytes(self._buffer[: len(MAGIC)])
        if begin != MAGIC[: len(begin)]:
            raise ProtocolError(f"a frame was expected, got {begin!r}")
        if len(self._buffer) < _PREFIX.size:
            return None
        _, header, payload = _PREFIX.unpack_from(self._buffer)
        if header > HEADER_LIMIT or payload > PAYLOAD_LIMIT:
            raise ProtocolError(f"a frame of {_size(header)} and {_size(payload)} was announced, which is too large")
        return _PREFIX.size, header, payload


def read(fd: int, *, strides: bool = False) -> Iterator:
    """The values that arrive through a pipe, one after another, until it is closed (for the worker: this blocks)."""
    frames = Frames()
    while data := os.read(fd, 1 << 20):
        for header, payload in frames.feed(data):
            yield unpack(header, payload, strides=strides)


def write(fd: int, value) -> None:
    """Send plain data through a pipe (for the worker: this blocks). Raises ProtocolError before the first byte."""
    send(fd, pack(value))


def send(fd: int, frame: bytes, _write=os.write) -> None:
    """Send a frame through a pipe, all of it."""
    rest = memoryview(frame)
    while rest:
        rest = rest[_write(fd, rest) :]


# Packing


def _encode(value, payload: list[bytes], depth: int = 0):
    kind = _type(value)
    if depth > DEPTH_LIMIT:
        raise ProtocolError(f"values are nested more than {DEPTH_LIMIT} deep")
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        if value.bit_length() > INT_BITS:
            raise ProtocolError(f"an int of {value.bit_length()} bits is too large to send")
        return value
    if kind is float:
        return {"float": value.hex()}
    if kind is Tensor:
        return {"tensor": _encode_tensor(value, payload)}
    if kind is tuple or kind is list:
        return {kind.__name__: [_encode(x, payload, depth + 1) for x in value]}
    if kind is dict:
        return {"dict": [[_encode(each, payload, depth + 1) for each in item] for item in value.items()]}
    raise ProtocolError(f"a {kind.__name__} is not plain data")


def _encode_tensor(x: Tensor, payload: list[bytes]) -> list:
    if x.dtype not in _NAMES:
        raise ProtocolError(f"a tensor of dtype {x.dtype} cannot be sent")
    name, shape = _NAMES[x.dtype], list(x.shape)
    alone = x.untyped_storage().nbytes() == x.numel() * x.itemsize
    if alone and x.is_contiguous() and not x.requires_grad:
        payload.append(_bytes(x))
        return [name, shape]
    # The whole storage goes along: what lies around a slice is part of the question, too.
    whole = torch.empty(0, dtype=x.dtype).set_(x.detach().cpu().untyped_storage())
    payload.append(_bytes(whole))
    return [name, shape, list(x.stride()), x.storage_offset(), whole.numel(), x.requires_grad]


def _bytes(x: Tensor) -> bytes:
    # as_strided: a tensor of one element counts as contiguous whatever its stride, as logits[:, -1] of one row has it.
    flat = _as_strided(_contiguous(x.detach().cpu()), (x.numel(),), (1,))
    return _view(flat, torch.uint8).numpy().tobytes()


# Unpacking


def _decode(tree, rest: memoryview, strides: bool, depth: int):
    """The value that the tree describes, and what is left of the payload."""
    if depth > DEPTH_LIMIT:
        raise ProtocolError(f"values are nested more than {DEPTH_LIMIT} deep")
    if tree is None or type(tree) is bool:
        return tree, rest
    if type(tree) is str:  # a lone surrogate would break whoever prints it
        return tree.encode("utf-8", "replace").decode("utf-8"), rest
    if type(tree) is int:
        if tree.bit_length() > INT_BITS:
            raise ProtocolError(f"an int of {tree.bit_length()} bits is too large")
        return tree, rest
    if type(tree) is not dict or len(tree) != 1:
        raise ProtocolError(f"{_short(tree)} is no value")
    ((kind, content),) = tree.items()
    if kind == "float":
        return _decode_float(content), rest
    if type(content) is not list:
        raise ProtocolError(f"{_short(tree)} is no value")
    if kind == "tensor":
        return _decode_tensor(content, rest, strides)
    if kind in ("tuple", "list"):
        items = []
        for each in content:
            item, rest = _decode(each, rest, strides, depth + 1)
            items.append(item)
        return (tuple(items) if kind == "tuple" else items), rest
    if kind == "dict":
        return _decode_dict(content, rest, strides, depth)
    raise ProtocolError(f"{_short(kind)} is no kind of value")


def _decode_dict(content: list, rest: memoryview, strides: bool, depth: int) -> tuple[dict, memoryview]:
    found: dict = {}
    for pair in content:
        if type(pair) is not list or len(pair) != 2:
            raise ProtocolError(f"{_short(pair)} is no item of a dict")
        key, rest = _decode(pair[0], rest, strides, depth + 1)
        if not isinstance(key, (str, int, float, bool, type(None))):
            raise ProtocolError(f"a {type(key).__name__} is no key")
        found[key], rest = _decode(pair[1], rest, strides, depth + 1)
    if len(found) != len(content):
        raise ProtocolError("a dict has one key twice")
    return found, rest


def _decode_float(text) -> float:
    try:
        return float.fromhex(text)
    except (TypeError, ValueError, OverflowError):
        raise ProtocolError(f"{_short(text)} is no float") from None


def _decode_tensor(content: list, rest: memoryview, strides: bool) -> tuple[Tensor, memoryview]:
    if len(content) not in ((2, 6) if strides else (2,)):
        raise ProtocolError(f"{_short(content)} describes no tensor that may come here")
    name, shape, *layout = content
    dtype = _DTYPES.get(name) if type(name) is str else None
    if dtype is None:
        raise ProtocolError(f"{_short(name)} is no dtype")
    # Dimensions that are too large together are too large one by one, where one of them is 0.
    if not _counts(shape) or len(shape) > 32 or math.prod(max(n, 1) for n in shape) > PAYLOAD_LIMIT:
        raise ProtocolError(f"{_short(shape)} is no shape")
    count = math.prod(shape)
    if layout:
        stride, offset, count, requires_grad = layout
        if not _counts(stride) or not _counts([offset, count]) or type(requires_grad) is not bool:
            raise ProtocolError(f"{_short(layout)} is no layout")
    size = count * dtype.itemsize
    if size > rest.nbytes:
        raise ProtocolError(f"a tensor of {size} bytes was announced, where {rest.nbytes} are left")
    data = bytearray(rest[:size])  # a copy, so that it is aligned and can be written to
    if dtype is torch.bool and data.count(0) + data.count(1) != size:
        raise ProtocolError("a bool tensor holds bytes that are neither 0 nor 1")
    flat = torch.frombuffer(data, dtype=torch.uint8).view(dtype) if size else torch.empty(0, dtype=dtype)
    if not layout:
        return flat.reshape(shape), rest[size:]
    last = offset + sum(step * (n - 1) for step, n in zip(stride, shape, strict=False))
    if len(stride) != len(shape) or (0 not in shape and last >= count):
        raise ProtocolError(f"{_short(layout)} reaches beyond the tensor's memory")
    return flat.as_strided(shape, stride, offset).requires_grad_(requires_grad), rest[size:]


def _counts(value) -> bool:
    return type(value) is list and all(type(n) is int and 0 <= n <= PAYLOAD_LIMIT for n in value)


def _no_constant(text: str):
    raise ValueError(f"{text} may not be in it")


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:58] + " …"


def _size(n: int) -> str:
    return f"{n:,} bytes"
