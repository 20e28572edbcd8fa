"""A GGUF file's header: its settings, and where its tensors lie; of a file in several parts those of all parts.

    magic "GGUF" · version · how many tensors · how many settings
    settings   key, type, value                        e.g. llama.block_count = 30; arrays hold the vocabulary
    tensors    name, shape, type, offset
    data       aligned to 32 bytes, in the order of the offsets

A large model is split: model-00001-of-00003.gguf has the settings and the first tensors, the others have tensors alone.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import mmap
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llmsys.models.checkpoints.settings import Settings, shown

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DIMENSIONS = 4  # a tensor has at most so many


class TensorInfo(NamedTuple):
    """Where a tensor lies in the file: its shape as torch counts it, its type's number, offset and size in bytes."""

    shape: tuple[int, ...]
    type: int
    offset: int
    size: int


class Part(NamedTuple):
    """A file that is mapped into memory, and its tensors."""

    data: Any
    tensors: Mapping[str, TensorInfo]


def read_parts(path: Path) -> tuple[dict[str, Any], list[Part]]:
    """The settings of the GGUF file at `path`, and all the files that belong to it, itself the first.

    Raises
    ------
    ValueError
        As for `read_header`; or it is not the first of several parts, or another part is missing or foreign.
    """
    data = _map(path)
    values, tensors = read_header(data, path)
    settings = Settings(values, path)
    count = settings.size("split.count", 1) if settings.raw("split.count") != 0 else 1
    if count == 1:
        return values, [Part(data, tensors)]
    name = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if name is None or int(name[3]) != count:
        raise ValueError(
            f"{path}: this is one part of {count} (split.count), so its name must end in -00001-of-{count:05}.gguf, "
            "and the other parts must be beside it"
        )
    if settings.raw("split.no") not in (0, None) or int(name[2]) != 1:
        raise ValueError(
            f"{path}: this is not the first part of {count} (split.no); give load_model "
            f"{name[1]}-00001-of-{count:05}.gguf"
        )
    parts = [Part(data, tensors)]
    for number in range(2, count + 1):
        other = path.with_name(f"{name[1]}-{number:05}-of-{count:05}.gguf")
        if not other.is_file():
            raise ValueError(f"{other}: no such file, and {path.name} is one part of {count}; put all of them together")
        data = _map(other)
        values_there, tensors = read_header(data, other)
        if values_there.get("split.no") != number - 1 or values_there.get("split.count") != count:
            raise ValueError(
                f"{other}: must be part {number} of {count} by its split.no and split.count, got "
                f"{shown(values_there.get('split.no'))} and {shown(values_there.get('split.count'))}"
            )
        if twice := sorted(name for part in parts for name in part.tensors.keys() & tensors.keys()):
            raise ValueError(f"{other}: the tensor {twice[0]} is in an earlier part, too; download the parts again")
        parts.append(Part(data, tensors))
    total = settings.size("split.tensors.count", None)
    if total is not None and total != sum(len(part.tensors) for part in parts):
        raise settings.wrong("split.tensors.count", f"{sum(len(part.tensors) for part in parts)}, as the parts have it")
    return values, parts


def read_header(data, path: Path) -> tuple[dict[str, Any], Mapping[str, TensorInfo]]:
    """The settings and the tensors' places of the GGUF file whose bytes are `data`. `path` is for error messages.

    Raises
    ------
    ValueError
        It is no GGUF file, of another version, or ends too early.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if data[:4] != b"GGUF":
        raise ValueError(
            f"{path}: not a GGUF file (it begins with {bytes(data[:4])!r}, not b'GGUF'); load_model takes a .gguf file "
            "or a Hugging Face directory"
        )
    reader = _Reader(data)
    try:
        version = reader.scalar("I")
        if version not in (2, 3):
            raise ValueError(f"{path}: GGUF version {version}; load_model reads versions 2 and 3, little-endian")
        tensor_count, setting_count = reader.scalar("Q"), reader.scalar("Q")
        settings = {}
        for _ in range(setting_count):
            key = reader.string()
            if key in settings:
                raise ValueError(f"{path}: the setting {key} is there twice; download the file again")
            settings[key] = reader.value(reader.scalar("I"))
        found = []
        for _ in range(tensor_count):
            name = reader.string()
            dimensions = reader.scalar("I")
            if dimensions > _DIMENSIONS:
                raise struct.error("a tensor of more dimensions than there are")
            shape = tuple(reversed([reader.scalar("Q") for _ in range(dimensions)]))
            found.append((name, shape, reader.scalar("I"), reader.scalar("Q")))
    except (struct.error, KeyError, UnicodeDecodeError, MemoryError, OverflowError) as error:
        raise ValueError(
            f"{path}: damaged or truncated, the header cannot be read beyond byte {reader.at} of {len(data)}; "
            "download the file again"
        ) from error

    own = Settings(settings, path)
    alignment = own.size("general.alignment", 32)
    start = -(-reader.at // alignment) * alignment
    if alignment & (alignment - 1) or (found and start > len(data)):
        raise own.wrong("general.alignment", f"a power of two below the file's {len(data):,} bytes")
    tensors = {}
    for name, shape, kind, offset in found:
        if kind not in iter(GGMLQuantizationType):
            raise ValueError(f"{path}: {name} has quantisation type {kind}, which this version of gguf does not know")
        if name in tensors:
            raise ValueError(f"{path}: the tensor {name} is there twice; download the file again")
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if shape and shape[-1] % block:
            raise ValueError(f"{path}: the tensor {name} must have rows of whole blocks of {block}, got {shape[-1]}")
        tensors[name] = TensorInfo(shape, kind, start + offset, math.prod(shape) // block * block_bytes)
        end = start + offset + tensors[name].size
        if end > len(data):
            raise ValueError(
                f"{path}: truncated, {name} ends at byte {end:,} and the file at {len(data):,}; download it again"
            )
    return settings, tensors


class _Reader:
    """Reads GGUF's values one after the other from `data`."""

    def __init__(self, data):
        self.data = data
        self.at = 4

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        size = self.scalar("Q")
        end = self.at + size
        if end > len(self.data):
            raise struct.error("a string beyond the end of the file")
        text = str(self.data[self.at : end], "utf-8")
        self.at = end
        return text

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == _ARRAY:
            raise struct.error("an array of arrays")
        if kind in _SCALARS:
            code = f"<{count}{_SCALARS[kind]}"
            values = struct.unpack_from(code, self.data, self.at)
            self.at += struct.calcsize(code)
            return list(values)
        return [self.value(kind) for _ in range(count)]


def _map(path: Path):
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise ValueError(f"{path}: empty; download it again")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # writable as torch wants it, the file is not
