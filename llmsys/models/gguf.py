"""GGUF, llama.cpp's format: one file with settings, vocabulary and weights, the weights usually quantised.

    magic "GGUF" · version · how many tensors · how many settings
    settings   key, type, value                        e.g. llama.block_count = 30; arrays hold the vocabulary
    tensors    name, shape, type, offset
    data       aligned to 32 bytes, in the order of the offsets

A quantised matrix is cut into blocks of 32 numbers of a row. In type Q4_1 a block is 20 bytes: a scale d, a minimum m
and 32 numbers q of 4 bits, meaning d · q + m. That and Q8_0 are unpacked here, straight into torch; the other types by
the `gguf` package (whose reader is not used: it takes seconds for a vocabulary, as it makes an array of each string).
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmsys.models.llama import LlamaConfig
from llmsys.models.tokenizer import Tokenizer

NAMES = {
    "embedding": "token_embd.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
    "attention_norm": "blk.{}.attn_norm.weight",
    "q": "blk.{}.attn_q.weight",
    "k": "blk.{}.attn_k.weight",
    "v": "blk.{}.attn_v.weight",
    "q_norm": "blk.{}.attn_q_norm.weight",
    "k_norm": "blk.{}.attn_k_norm.weight",
    "output": "blk.{}.attn_output.weight",
    "mlp_norm": "blk.{}.ffn_norm.weight",
    "gate": "blk.{}.ffn_gate.weight",
    "up": "blk.{}.ffn_up.weight",
    "down": "blk.{}.ffn_down.weight",
}
ROPE_DIVISORS = "rope_freqs.weight"
ARCHITECTURES = ("llama", "qwen3")

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class TensorInfo(NamedTuple):
    """Where a tensor lies in the file: its shape as torch counts it, its type's number, offset and size in bytes."""

    shape: tuple[int, ...]
    type: int
    offset: int
    size: int


class GGUFCheckpoint:
    """A GGUF file as a checkpoint (the contract is `llmsys.models.weights.Checkpoint`)."""

    def __init__(self, path: Path):
        self.path = path
        self._data = _map(path)
        self.settings, self.tensors = read_header(self._data, path)
        self.architecture = self._setting("general.architecture")
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"{path}: the architecture is {self.architecture!r}; load_model knows {' and '.join(ARCHITECTURES)}"
            )
        self.config = self._config()
        self.tokenizer = Tokenizer.from_gguf(self.settings)

    def name(self, part: str, layer: int | None) -> str:
        return NAMES[part].format(layer)

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self.tensors[name].shape if name in self.tensors else None

    def read(self, part: str, layer: int | None) -> Tensor:
        x = self._dequantised(self.name(part, layer))
        if self.architecture == "llama" and part in ("q", "k"):
            # llama.cpp turns neighbours, this model element i with i + D/2: the file's rows are in pairs
            pairs = x.view(-1, self.config.head_size // 2, 2, x.shape[1])  # (H, D/2, 2, C)
            x = pairs.transpose(1, 2).reshape(x.shape)
        return x

    def unknown(self, names: set[str]) -> list[str]:
        known = names | {ROPE_DIVISORS, NAMES["head"]}  # a head beside tied embeddings cannot be: see _config
        return sorted(self.tensors.keys() - known)

    def _config(self) -> LlamaConfig:
        def get(key: str, default: Any = None) -> Any:
            return self._setting(f"{self.architecture}.{key}", default)

        heads, hidden = get("attention.head_count"), get("embedding_length")
        return LlamaConfig(
            name=self._setting("general.name", self.path.stem),
            vocab_size=len(self._setting("tokenizer.ggml.tokens")),
            hidden_size=hidden,
            layers=get("block_count"),
            heads=heads,
            kv_heads=get("attention.head_count_kv", heads),
            head_size=get("attention.key_length", hidden // heads),
            mlp_size=get("feed_forward_length"),
            context_length=get("context_length"),
            rope_base=float(get("rope.freq_base", 10_000.0)),
            rope_divisors=self._rope_divisors(get("rope.scaling.type", "none"), get("rope.scaling.factor", 1.0)),
            norm_eps=get("attention.layer_norm_rms_epsilon"),
            qk_norm=self.architecture == "qwen3",
            tied_embeddings=NAMES["head"] not in self.tensors,
        )

    def _rope_divisors(self, scaling: str, factor: float) -> tuple[float, ...] | None:
        if ROPE_DIVISORS in self.tensors:  # how a GGUF file says Llama 3's scaling
            return tuple(self._dequantised(ROPE_DIVISORS).tolist())
        if scaling == "none":
            return None
        if scaling == "linear":
            width = self._setting(f"{self.architecture}.rope.dimension_count")
            return (float(factor),) * (width // 2)
        raise ValueError(f"{self.path}: rotary positions are scaled by {scaling!r}; load_model knows linear and llama3")

    def _setting(self, key: str, default: Any = None) -> Any:
        value = self.settings.get(key, default)
        if value is None:
            raise ValueError(f"{self.path}: the setting {key} is missing; is this a language model's GGUF file?")
        return value

    def _dequantised(self, name: str) -> Tensor:
        shape, kind, offset, size = self.tensors[name]
        raw = torch.frombuffer(self._data, dtype=torch.uint8, count=size, offset=offset)
        return dequantise(raw, kind).view(shape)


def dequantise(raw: Tensor, kind: int) -> Tensor:
    """The numbers that the bytes `raw` of a tensor mean, flat, in fp32 (or as they are, if they are floats)."""
    from gguf import GGMLQuantizationType as Type

    kind = Type(kind)
    if kind in (Type.F32, Type.F16, Type.BF16):
        return raw.view({Type.F32: torch.float32, Type.F16: torch.float16, Type.BF16: torch.bfloat16}[kind]).clone()
    if kind in _UNPACK:
        block_bytes, unpack = _UNPACK[kind]
        blocks = raw.view(-1, block_bytes)
        x = torch.empty(blocks.shape[0], 32)
        for part, packed in zip(x.split(_BLOCKS_AT_A_TIME), blocks.split(_BLOCKS_AT_A_TIME), strict=True):
            unpack(packed, part)
        return x.view(-1)
    from gguf.quants import dequantize

    return torch.from_numpy(dequantize(raw.numpy(), kind))


def _unpack_q4_1(blocks: Tensor, x: Tensor) -> None:
    # fp16 d, fp16 m, 16 bytes: the low halves are numbers 0…15, the high halves 16…31
    d, m = blocks[:, :4].contiguous().view(torch.float16).float().split(1, dim=1)  # (blocks, 1) each
    x[:, :16] = blocks[:, 4:] & 15
    x[:, 16:] = blocks[:, 4:] >> 4
    x.mul_(d).add_(m)


def _unpack_q8_0(blocks: Tensor, x: Tensor) -> None:
    # fp16 d, 32 signed bytes
    x[:] = blocks[:, 2:].view(torch.int8)
    x.mul_(blocks[:, :2].contiguous().view(torch.float16).float())


_UNPACK = {3: (20, _unpack_q4_1), 8: (34, _unpack_q8_0)}  # by the type's number: a block's bytes, and how to read it
# At a time, so few that they are still in the CPU's cache when they are scaled, and that torch does not share them out
# among threads (it does from 32,768 numbers on): where another program is busy, waiting for those takes half a minute.
_BLOCKS_AT_A_TIME = 1000


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
        settings = {reader.string(): reader.value(reader.scalar("I")) for _ in range(setting_count)}
        found = []
        for _ in range(tensor_count):
            name = reader.string()
            shape = tuple(reversed([reader.scalar("Q") for _ in range(reader.scalar("I"))]))
            found.append((name, shape, reader.scalar("I"), reader.scalar("Q")))
    except (struct.error, KeyError, UnicodeDecodeError, MemoryError, OverflowError) as error:
        raise ValueError(
            f"{path}: damaged or truncated, the header cannot be read beyond byte {reader.at} of {len(data)}; "
            "download the file again"
        ) from error

    alignment = settings.get("general.alignment", 32)
    start = math.ceil(reader.at / alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in found:
        if kind not in iter(GGMLQuantizationType):
            raise ValueError(f"{path}: {name} has quantisation type {kind}, which this version of gguf does not know")
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
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
