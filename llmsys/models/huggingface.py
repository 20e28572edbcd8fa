"""A directory as on Hugging Face: config.json, *.safetensors (one file, or several and an index), tokenizer.json."""

import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmsys.models.llama import LlamaConfig
from llmsys.models.tokenizer import Tokenizer, read_json

NAMES = {
    "embedding": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attention_norm": "model.layers.{}.input_layernorm.weight",
    "q": "model.layers.{}.self_attn.q_proj.weight",
    "k": "model.layers.{}.self_attn.k_proj.weight",
    "v": "model.layers.{}.self_attn.v_proj.weight",
    "q_norm": "model.layers.{}.self_attn.q_norm.weight",
    "k_norm": "model.layers.{}.self_attn.k_norm.weight",
    "output": "model.layers.{}.self_attn.o_proj.weight",
    "mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    "gate": "model.layers.{}.mlp.gate_proj.weight",
    "up": "model.layers.{}.mlp.up_proj.weight",
    "down": "model.layers.{}.mlp.down_proj.weight",
}
ARCHITECTURES = ("LlamaForCausalLM", "Qwen3ForCausalLM")


class HuggingFaceCheckpoint:
    """A Hugging Face directory as a checkpoint (the contract is `llmsys.models.weights.Checkpoint`)."""

    def __init__(self, path: Path):
        self.path = path
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"{path}: no config.json in this directory; load_model takes a Hugging Face directory (config.json, "
                "*.safetensors, tokenizer.json) or the path of a .gguf file"
            )
        settings = read_json(path / "config.json")
        self.config = read_config(settings, path)
        self._files = open_files(path)
        end = settings.get("eos_token_id")
        if (path / "generation_config.json").is_file():  # instruction-tuned models say there where their turn ends
            end = read_json(path / "generation_config.json").get("eos_token_id", end)
        self.tokenizer = None
        if (path / "tokenizer.json").is_file():
            eos_ids = end if isinstance(end, list) else [] if end is None else [end]
            self.tokenizer = Tokenizer.from_directory(path, eos_ids=eos_ids)

    def name(self, part: str, layer: int | None) -> str:
        return NAMES[part].format(layer)

    def shape(self, name: str) -> tuple[int, ...] | None:
        return tuple(self._files[name].get_slice(name).get_shape()) if name in self._files else None

    def read(self, part: str, layer: int | None) -> Tensor:
        name = self.name(part, layer)
        return self._files[name].get_tensor(name)

    def unknown(self, names: set[str]) -> list[str]:
        known = names | {NAMES["head"]}  # some save a tied head once more
        return sorted(name for name in self._files.keys() - known if not name.endswith("rotary_emb.inv_freq"))


def read_config(settings: dict[str, Any], path: Path) -> LlamaConfig:
    """The settings in config.json as ours; what this model cannot do is refused by name."""
    where = path / "config.json"
    architecture = (settings.get("architectures") or ["none"])[0]
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{where}: the architecture is {architecture}; load_model knows {' and '.join(ARCHITECTURES)}")
    for switch in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if settings.get(switch):
            raise ValueError(f"{where}: {switch} is on, and this model has no such thing")
    if settings.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{where}: hidden_act is {settings['hidden_act']!r}; load_model knows 'silu'")

    def need(key: str) -> Any:
        if settings.get(key) is None:
            raise ValueError(f"{where}: the setting {key} is missing")
        return settings[key]

    heads = need("num_attention_heads")
    head_size = settings.get("head_dim") or need("hidden_size") // heads
    # transformers 5 writes rope_parameters, which holds what rope_theta and rope_scaling were before
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    base = float(rope.get("rope_theta") or settings.get("rope_theta") or 10_000.0)
    return LlamaConfig(
        name=path.resolve().name,
        vocab_size=need("vocab_size"),
        hidden_size=need("hidden_size"),
        layers=need("num_hidden_layers"),
        heads=heads,
        kv_heads=settings.get("num_key_value_heads") or heads,
        head_size=head_size,
        mlp_size=need("intermediate_size"),
        context_length=need("max_position_embeddings"),
        rope_base=base,
        rope_divisors=rope_divisors(rope, base, head_size, where),
        norm_eps=float(settings.get("rms_norm_eps", 1e-6)),
        qk_norm=architecture == "Qwen3ForCausalLM",
        tied_embeddings=bool(settings.get("tie_word_embeddings", False)),
    )


def rope_divisors(rope: dict[str, Any], base: float, head_size: int, where: Path) -> tuple[float, ...] | None:
    """By what each pair's frequency is divided, so that a context longer than the one first trained on fits its turns.

    "linear" slows all pairs down alike. "llama3" leaves those alone that turn often within the old context, slows
    those down that never complete a turn, and blends in between (Llama 3.1; https://arxiv.org/abs/2407.21783).
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "divisors":  # as `llmsys.models.save` writes them
        return tuple(float(each) for each in rope["divisors"])
    if kind not in ("linear", "llama3"):
        raise ValueError(f"{where}: rotary positions are scaled by {kind!r}; load_model knows linear and llama3")
    needed = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    for key in needed if kind == "llama3" else needed[:1]:
        if key not in rope:
            raise ValueError(f"{where}: rotary positions are scaled by {kind!r}, and its {key} is missing")
    factor = float(rope["factor"])
    if kind == "linear":
        return (factor,) * (head_size // 2)
    slow, fast = rope["low_freq_factor"], rope["high_freq_factor"]  # in turns within the old context
    divisors = []
    for i in range(head_size // 2):
        turns = rope["original_max_position_embeddings"] / (2 * math.pi) * base ** (-2 * i / head_size)
        kept = min(max((turns - slow) / (fast - slow), 0.0), 1.0)
        divisors.append(1 / ((1 - kept) / factor + kept))
    return tuple(divisors)


def open_files(path: Path) -> dict[str, Any]:
    """Which open safetensors file holds each tensor. Several files are listed in model.safetensors.index.json."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map", {})
        opened = {file: _open(path / file) for file in sorted(set(weight_map.values()))}
        held = {file: set(opened[file].keys()) for file in opened}
        for name, file in weight_map.items():
            if name not in held[file]:
                raise ValueError(
                    f"{path / file}: the tensor {name} is missing, and {index.name} says that it is there; download "
                    "the directory again"
                )
        return {name: opened[file] for name, file in weight_map.items()}
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{path}: no *.safetensors in this directory, so no weights (.bin files are not read)")
    return {name: file for file in map(_open, files) for name in file.keys()}


def _open(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, and the index names it; download the directory again")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated, or not a safetensors file ({error}); download it again") from error
