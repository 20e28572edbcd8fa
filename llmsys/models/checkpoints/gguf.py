"""GGUF, llama.cpp's format: one file with settings, vocabulary and weights, the weights usually quantised.

How such a file is laid out is in `llmsys.models.checkpoints.gguf_file`; here it becomes a model. A quantised matrix is
cut into blocks of 32 numbers of a row. In type Q4_1 a block is 20 bytes: a scale d, a minimum m and 32 numbers q of 4
bits, meaning d · q + m. That and Q8_0 are unpacked here, straight into torch; the other types by the `gguf` package
(whose reader is not used: it takes seconds for a vocabulary, as it makes an array of each string). What a setting
means, also where it is missing, is as in llama.cpp.
"""

from pathlib import Path

import torch
from torch import Tensor

from llmsys.models.checkpoints.gguf_file import read_header, read_parts
from llmsys.models.checkpoints.gguf_vocabulary import read_tokens
from llmsys.models.checkpoints.settings import Settings, shown
from llmsys.models.llama import LlamaConfig
from llmsys.models.rope_scaling import from_gguf
from llmsys.models.text.tokenizer import Tokenizer

__all__ = ["ARCHITECTURES", "NAMES", "GGUFCheckpoint", "dequantise", "read_header"]

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
KEYS = {
    "hidden_size": "embedding_length",
    "layers": "block_count",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_size": "attention.key_length",
    "mlp_size": "feed_forward_length",
}
ROPE_DIVISORS = "rope_freqs.weight"
ARCHITECTURES = ("llama", "qwen3")


class GGUFCheckpoint:
    """A GGUF file as a checkpoint (the contract is `llmsys.models.checkpoints.weights.Checkpoint`)."""

    def __init__(self, path: Path):
        self.path = path
        values, self._parts = read_parts(path)
        self._settings = Settings(values, path)
        self.tensors = {name: info for part in self._parts for name, info in part.tensors.items()}
        self.architecture = self._settings.text("general.architecture")
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"{path}: general.architecture: the architecture is {shown(self.architecture)}; load_model knows "
                f"{' and '.join(ARCHITECTURES)}"
            )
        self.config = self._config()
        self.tokenizer = Tokenizer.from_gguf(values, path)

    def name(self, part: str, layer: int | None, expert: int | None = None) -> str:
        return NAMES[part].format(layer)

    def key(self, field: str) -> str:
        return "tokenizer.ggml.tokens" if field == "vocab_size" else f"{self.architecture}.{KEYS[field]}"

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self.tensors[name].shape if name in self.tensors else None

    def read(self, part: str, layer: int | None, expert: int | None = None) -> Tensor:
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
        settings, own = self._settings, f"{self.architecture}."
        if settings.raw(f"{own}expert_count") not in (None, 0):
            raise settings.wrong(f"{own}expert_count", "0: load_model knows no mixtures of experts")
        layers, hidden = settings.size(f"{own}block_count"), settings.size(f"{own}embedding_length")
        heads = self._same_in_all_layers("attention.head_count", layers)
        kv_heads = self._same_in_all_layers("attention.head_count_kv", layers, heads)
        head_size = settings.size(f"{own}attention.key_length", hidden // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if settings.size(f"{own}{key}", head_size) != head_size:
                raise settings.wrong(f"{own}{key}", f"{head_size}, the size of a head ({own}attention.key_length)")
        if heads % kv_heads:
            raise settings.wrong(f"{own}attention.head_count_kv", f"a divisor of the {heads} heads")
        if head_size % 2 or head_size == 0:
            raise settings.wrong(f"{own}attention.key_length", f"even (rotary positions turn pairs), not {head_size}")
        return LlamaConfig(
            name=settings.text("general.name", self.path.stem),
            vocab_size=len(read_tokens(settings)),
            hidden_size=hidden,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_size=head_size,
            mlp_size=self._same_in_all_layers("feed_forward_length", layers),
            context_length=settings.size(f"{own}context_length"),
            rope_base=settings.number(f"{own}rope.freq_base", 10_000.0, above=1.0, or_equal=True),
            rope_divisors=from_gguf(settings, self.architecture, head_size // 2, self._rope_divisors()),
            norm_eps=settings.number(f"{own}attention.layer_norm_rms_epsilon", or_equal=True),
            qk_norm=self.architecture == "qwen3",
            tied_embeddings=NAMES["head"] not in self.tensors,
        )

    def _same_in_all_layers(self, name: str, layers: int, default: int | None = None) -> int:
        """A size that a file gives once, or for each layer: here all layers are alike."""
        key = f"{self.architecture}.{name}"
        value = self._settings.raw(key)
        if not isinstance(value, list):
            return self._settings.size(key) if default is None else self._settings.size(key, default)
        if len(value) != layers or len(set(value)) != 1:
            raise self._settings.wrong(key, f"a whole number, or the same one for each of the {layers} layers")
        return Settings({key: value[0]}, self.path).size(key)

    def _rope_divisors(self) -> tuple[float, ...] | None:
        """How a GGUF file says Llama 3's scaling."""
        return tuple(self._dequantised(ROPE_DIVISORS).flatten().tolist()) if ROPE_DIVISORS in self.tensors else None

    def _dequantised(self, name: str) -> Tensor:
        data = next(part.data for part in self._parts if name in part.tensors)
        shape, kind, offset, size = self.tensors[name]
        raw = torch.frombuffer(data, dtype=torch.uint8, count=size, offset=offset)
        try:
            return dequantise(raw, kind).view(shape)
        except NotImplementedError as error:
            raise ValueError(f"{self.path}: the tensor {name} cannot be unpacked ({error})") from error


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
