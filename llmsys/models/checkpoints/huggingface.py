"""A directory as on Hugging Face: config.json, *.safetensors (one file, or several and an index), tokenizer.json."""

from pathlib import Path

from torch import Tensor

from llmsys.models.checkpoints.safetensors_files import TensorFiles
from llmsys.models.checkpoints.settings import Settings, read_settings, shown
from llmsys.models.deepseek import layouts as deepseek
from llmsys.models.llama import LlamaConfig
from llmsys.models.mixture import layouts
from llmsys.models.rope_scaling import from_config
from llmsys.models.text.tokenizer import Tokenizer

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
KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "mlp_size": "intermediate_size",
}
FAMILIES = {"llama": "Llama", "qwen3": "Qwen3"} | layouts.FAMILIES | deepseek.FAMILIES
"""By transformers' model_type, how the names of its classes begin."""
ARCHITECTURES = tuple(f"{name}ForCausalLM" for name in FAMILIES.values())
_FAMILIES = {f"{name}{ending}": family for family, name in FAMILIES.items() for ending in ("ForCausalLM", "Model")}
DEFAULT_KV_HEADS = {"qwen3": 32, "qwen3_moe": 4, "mixtral": 8}
"""transformers' defaults for these families; of others as many as query heads."""
_LLAMAS_END = 2  # Llama 2's </s>, which transformers takes where no file of a Llama says where a turn ends


class HuggingFaceCheckpoint:
    """A Hugging Face directory as a checkpoint (the contract is `llmsys.models.checkpoints.weights.Checkpoint`).

    Where config.json says that the head is the embedding's matrix, the weights decide, as in transformers: a head that
    is another matrix is the head, and an embedding that is missing is found under the head's name.
    """

    def __init__(self, path: Path):
        self.path = path
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"{path}: no config.json in this directory; load_model takes a Hugging Face directory (config.json, "
                "*.safetensors, tokenizer.json) or the path of a .gguf file"
            )
        settings = read_settings(path / "config.json")
        self.family = family = family_of(settings)
        self._settings = settings
        self._files = TensorFiles(path)
        embedding, head = NAMES["embedding"], NAMES["head"]
        tied = settings.flag("tie_word_embeddings", False)
        if tied and embedding in self._files and head in self._files:
            tied = self._files.equal(embedding, head)
        self._embedding = head if tied and embedding not in self._files and head in self._files else embedding
        self.config = read_config(settings, family, path.resolve().name, tied)
        ends = ends_of_turn(settings, path)
        self.tokenizer = None
        if (path / "tokenizer.json").is_file():
            self.tokenizer = Tokenizer.from_directory(path, eos_ids=ends)
            silent = "eos_token_id" not in settings.values and not (path / "generation_config.json").is_file()
            if silent and family == "llama" and not self.tokenizer.eos_ids:
                self.tokenizer.eos_ids = frozenset([_LLAMAS_END])

    def name(self, part: str, layer: int | None, expert: int | None = None) -> str:
        return self._embedding if part == "embedding" else name_of(part, layer, expert, self.family)

    def key(self, field: str) -> str:
        return f"{(KEYS | (layouts.KEYS | deepseek.KEYS).get(self.family, {}))[field]} in config.json"

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self._files.shape(name)

    def read(self, part: str, layer: int | None, expert: int | None = None) -> Tensor:
        return self._files.read(self.name(part, layer, expert))

    def unknown(self, names: set[str]) -> list[str]:
        known = names | ({NAMES["head"]} if self.config.tied_embeddings else set())  # some save a tied head once more
        found = sorted(name for name in self._files.names() - known if not name.endswith("rotary_emb.inv_freq"))
        if self.family in deepseek.FAMILIES:
            layers = self.config.layers
            found = [name for name in found if not deepseek.predicts_further_tokens(name, self._settings, layers)]
        return [self._files.described(name) for name in found]


def name_of(part: str, layer: int | None, expert: int | None, family: str) -> str:
    """What transformers calls the tensor of a part, one of `llmsys.models.checkpoints.weights.PARTS`, in a model of
    that family."""
    return (NAMES | (layouts.NAMES | deepseek.NAMES).get(family, {}))[part].format(layer, expert)


def ends_of_turn(settings: Settings, path: Path) -> list[int]:
    """The tokens at which a turn is over, by generation_config.json and config.json."""
    ends = settings.ids("eos_token_id", [])
    # instruction-tuned models say in the former where their turn ends
    return read_settings(path / "generation_config.json").ids("eos_token_id", ends)


def family_of(settings: Settings) -> str:
    """Which architecture config.json names, one of `FAMILIES`; another one is refused by name."""
    names = settings.texts("architectures", [])
    kind = settings.text("model_type", None)
    family = _FAMILIES.get(names[0]) if names else kind
    if family not in _FAMILIES.values():
        raise ValueError(
            f"{settings.where}: the architecture is {names[0] if names else kind or 'none'}, by "
            f"{'architectures' if names else 'model_type'}; load_model knows {', '.join(ARCHITECTURES)}"
        )
    if kind not in (None, family):
        raise ValueError(f"{settings.where}: model_type is {shown(kind)}, and architectures says {names[0]}")
    return family


def read_config(settings: Settings, family: str, name: str, tied_embeddings: bool) -> LlamaConfig:
    """The settings in config.json as ours; what this model cannot do is refused by name."""
    if family in deepseek.FAMILIES:
        return deepseek.read_config(settings, family, name, tied_embeddings)
    settings.none_of(("attention_bias", "mlp_bias", "use_sliding_window"), "and this model has no such thing")
    if (activation := settings.text("hidden_act", "silu")) not in ("silu", "swish"):
        raise ValueError(f"{settings.where}: hidden_act is {shown(activation)}; load_model knows 'silu'")
    if "quantization_config" in settings:
        raise ValueError(f"{settings.where}: quantization_config is there, and load_model reads plain weights alone")
    layers = settings.size("num_hidden_layers")
    kinds = settings.texts("layer_types", None)
    if kinds is not None and (len(kinds) != layers or set(kinds) != {"full_attention"}):
        raise settings.wrong("layer_types", f"'full_attention' for each of the {layers} layers of num_hidden_layers")
    hidden, heads = settings.size("hidden_size"), settings.size("num_attention_heads")
    kv_heads = settings.size("num_key_value_heads", heads)
    if family in DEFAULT_KV_HEADS and "num_key_value_heads" not in settings.values:
        kv_heads = DEFAULT_KV_HEADS[family]
    head_size = settings.size("head_dim", 128 if family == "qwen3" else None)
    if head_size is None:
        if hidden % heads:
            raise settings.wrong("hidden_size", f"a multiple of num_attention_heads, {heads}, without a head_dim")
        head_size = hidden // heads
    if heads % kv_heads:
        raise settings.wrong("num_attention_heads", f"a multiple of num_key_value_heads, which is {kv_heads}")
    if head_size % 2:
        raise ValueError(f"{settings.where}: head_dim must be even (rotary positions turn pairs), got {head_size}")
    rope_base, rope_divisors = from_config(settings, head_size)
    config = LlamaConfig(
        name=name,
        vocab_size=settings.size("vocab_size"),
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        mlp_size=settings.size("intermediate_size"),
        context_length=settings.size("max_position_embeddings"),
        rope_base=rope_base,
        rope_divisors=rope_divisors,
        norm_eps=settings.number("rms_norm_eps", 1e-6, or_equal=True),
        qk_norm=family in ("qwen3", "qwen3_moe", "dots1"),
        tied_embeddings=tied_embeddings,
    )
    return layouts.read_mixture(settings, family, config) if family in layouts.FAMILIES else config
