"""From a model to a directory as on Hugging Face, which `load_model`, transformers and vLLM read.

    config.json               sizes and rotary positions, in transformers' words
    generation_config.json    the tokens at which a turn ends
    model.safetensors         weights by transformers' names: q, k and v apart, gate and up apart, no tied head
    tokenizer.json, tokenizer_config.json

It is the other direction of `llmsys.models.checkpoints.huggingface`: what was joined when the model was loaded is split
again.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from llmsys.models.checkpoints.huggingface import FAMILIES, name_of
from llmsys.models.checkpoints.safetensors_files import INDEX, WHOLE
from llmsys.models.checkpoints.weights import EACH_EXPERTS, own_weights, parts_of, rows_of
from llmsys.models.deepseek import DeepSeekConfig
from llmsys.models.deepseek import layouts as deepseek
from llmsys.models.llama import LlamaConfig
from llmsys.models.mixture import layouts
from llmsys.models.mixture.model import MixtureConfig
from llmsys.models.modules import plain_name, unwrapped
from llmsys.models.text.tokenizer import Tokenizer

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_OLDER_TOKENIZER_FILES = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja")


def save_model(model: nn.Module, directory: Path, *, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write `model`, with its tokenizer, into `directory`, which is made if need be.

    Files of these names are overwritten, one after the other: an interruption leaves some of each
    (`llmsys.training.save_checkpoint` leaves none). What an earlier checkpoint there had beyond them and a reader would
    believe, an index with its files or a chat template, is removed; the tokenizer's files stay where `model` has no
    tokenizer. `model` may be compiled. `weights`, by the names of `model.named_parameters()`, are written in place of
    the model's own; those are its masters, where it is trained in fewer bits. ValueError where `model` is a part of
    one: the directory would say that it holds all layers; or where transformers has no words for its settings.
    """
    model = unwrapped(model)
    if not model.is_whole:
        raise ValueError("model must be a whole one to be saved, and this is a part, without some layers or an end")
    settings = config_of(model.config)  # before anything is written: there may be no words for them
    directory.mkdir(parents=True, exist_ok=True)
    own = {plain_name(name): weight for name, weight in own_weights(model)}
    own |= {plain_name(name): weight for name, weight in (weights or {}).items()}
    tensors = {}
    for name, weight in own.items():
        layer, parts = parts_of(name, model.config)
        dim = rows_of(weight)
        pieces = weight.detach().split([count or weight.shape[dim] for _, count in parts], dim)
        for (part, _), piece in zip(parts, pieces, strict=True):
            for expert, each in enumerate(piece) if part in EACH_EXPERTS else [(None, piece)]:
                tensors[name_of(part, layer, expert, settings["model_type"])] = each.contiguous()
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    tokenizer = model.tokenizer
    ends = [] if tokenizer is None else sorted(tokenizer.eos_ids)  # no key would say that it is token 2, Llama 2's
    ids = {"bos_token_id": None if tokenizer is None else tokenizer.bos_id, "eos_token_id": ends or None}
    _write(directory / "config.json", settings | ids | {"dtype": dtype})
    _save_weights(tensors, directory)
    if tokenizer is not None:
        _save_tokenizer(tokenizer, directory)


def config_of(config: LlamaConfig) -> dict[str, Any]:
    """What transformers calls these settings. ValueError where it has no model of such."""
    if isinstance(config, DeepSeekConfig):
        own = deepseek.config_of(config)
    elif isinstance(config, MixtureConfig):
        family = layouts.family_of(config)
        own = {"architectures": [f"{FAMILIES[family]}ForCausalLM"], "model_type": family} | layouts.words_for(config)
    else:
        family = "qwen3" if config.qk_norm else "llama"
        own = {"architectures": [f"{FAMILIES[family]}ForCausalLM"], "model_type": family}
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_size,
        "max_position_embeddings": config.context_length,
        "rope_parameters": {"rope_theta": config.rope_base} | _rope(config.rope_divisors),
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    } | own


def _rope(divisors: tuple[float, ...] | None) -> dict[str, Any]:
    if divisors is None:
        return {"rope_type": "default"}
    if len(set(divisors)) == 1:
        return {"rope_type": "linear", "factor": divisors[0]}
    # Of Llama 3's scaling only the result is kept. transformers refuses the word rather than turn wrongly.
    return {"rope_type": "divisors", "divisors": list(divisors)}


def _save_weights(tensors: Mapping[str, Tensor], directory: Path) -> None:
    """Write model.safetensors, and remove the files of a checkpoint that was in several."""
    unfinished = directory / f"{WHOLE}.writing"  # the weights may be read from the file that is replaced
    try:
        save_file(tensors, unfinished, metadata={"format": "pt"})
        shutil.copymode(directory / "config.json", unfinished)  # safetensors makes it its owner's alone
        os.replace(unfinished, directory / WHOLE)
    finally:
        unfinished.unlink(missing_ok=True)
    (directory / INDEX).unlink(missing_ok=True)
    for file in directory.glob("model-*.safetensors"):
        if _SHARD.fullmatch(file.name):
            file.unlink()


def _save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    core = tokenizer.core_with_bos()
    core.save(str(directory / "tokenizer.json"))
    settings = {role: token for role, token in tokenizer.special.items() if role.endswith("_token")}
    if others := {role: token for role, token in tokenizer.special.items() if role not in settings}:
        settings["extra_special_tokens"] = others
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if tokenizer.core.encode_special_tokens:
        settings["split_special_tokens"] = True
    if tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template
    _write(directory / "tokenizer_config.json", settings)
    for name in _OLDER_TOKENIZER_FILES:
        (directory / name).unlink(missing_ok=True)
    if tokenizer.eos_ids:
        _write(directory / "generation_config.json", {"eos_token_id": sorted(tokenizer.eos_ids)})
    else:
        (directory / "generation_config.json").unlink(missing_ok=True)


def _write(path: Path, settings: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
