"""A tiny Llama as a GGUF file whose settings may be anything: the gguf package would refuse to write some of them."""

import struct
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers

from llmsys.models import Llama, LlamaConfig
from llmsys.models.checkpoints.gguf import NAMES
from llmsys.models.checkpoints.weights import parts_of

CONFIG = LlamaConfig("tiny", 259, 32, 2, 4, 2, 8, 48, 64, tied_embeddings=False)
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
SETTINGS = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "general.alignment": 32,
    "llama.block_count": 2,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 48,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.key_length": 8,
    "llama.attention.layer_norm_rms_epsilon": CONFIG.norm_eps,
    "llama.rope.dimension_count": 8,
    "llama.rope.freq_base": 10_000.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": [*LETTERS, "<|begin|>", "<|endoftext|>", "<|turn|>"],
    "tokenizer.ggml.token_type": [1] * 256 + [3, 3, 3],
    "tokenizer.ggml.merges": [],
    "tokenizer.ggml.bos_token_id": 256,
    "tokenizer.ggml.eos_token_id": 257,
    "tokenizer.chat_template": "{{ messages[0].content }}<|turn|>",
}


def tiny_model() -> Llama:
    torch.manual_seed(0)
    model = Llama(CONFIG).requires_grad_(False).eval()
    for weight in model.parameters():
        weight.copy_(torch.randn_like(weight) * (0.3 if weight.dim() == 2 else 1))
    return model


def tensors_of(model: Llama) -> dict[str, torch.Tensor]:
    """The model's weights by llama.cpp's names, the rows of q and k in llama.cpp's order."""
    found = {}
    for name, weight in model.named_parameters():
        layer, parts = parts_of(name, model.config)
        for (part, _), piece in zip(parts, weight.split([rows or weight.shape[0] for _, rows in parts]), strict=True):
            if part in ("q", "k"):  # the halves of each head, interleaved
                piece = piece.view(-1, 2, 4, 32).transpose(1, 2).reshape(piece.shape)
            found[NAMES[part].format(layer)] = piece.contiguous()
    return found


def write(path: Path, settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    """A GGUF file of these settings, whatever they are, and these tensors. A setting that is None is left out."""
    settings = {key: value for key, value in settings.items() if value is not None}
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(settings))
    for key, value in settings.items():
        header += _string(key) + struct.pack("<I", _kind(value)) + _packed(value)
    data = b""
    for name, tensor in tensors.items():
        sizes = tuple(reversed(tensor.shape))
        header += _string(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, 0, len(data))
        data += tensor.numpy().tobytes() + bytes(-tensor.numel() * 4 % 32)
    path.write_bytes(header + bytes(-len(header) % 32) + data)
    return path


def _kind(value: Any) -> int:
    """GGUF's number for the type of a value."""
    if isinstance(value, bool):
        return 7
    if isinstance(value, int):
        return 4 if 0 <= value < 2**32 else 10 if value > 0 else 11
    return {float: 12, str: 8, list: 9}[type(value)]


def _packed(value: Any) -> bytes:
    kind = _kind(value)
    if kind == 9:
        of = _kind(value[0]) if value else 8
        return struct.pack("<IQ", of, len(value)) + b"".join(map(_packed, value))
    return _string(value) if kind == 8 else struct.pack("<" + {7: "?", 4: "I", 10: "Q", 11: "q", 12: "d"}[kind], value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
