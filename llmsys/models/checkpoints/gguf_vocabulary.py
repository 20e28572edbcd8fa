"""The tokenizer of a GGUF file: vocabulary and merges are in its settings, of the pattern there is only a name.

llama.cpp decides what a setting means, also where it is missing: which token begins a text (`tokenizer.ggml.
add_bos_token`, which Llama 3's patterns imply), and which ones end a turn. Of the latter a file names one or two, and
often the wrong ones; so llama.cpp takes the usual ones by their text (`ENDS`), and so does this.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from llmsys.models.checkpoints.settings import Settings, is_whole, shown

ENDS = (
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>",
    "<|end_of_text|>", "</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
)  # fmt: skip
"""Tokens at which a turn or a text is over, in the vocabularies of many models."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
_CONTROL, _USER_DEFINED = 3, 4  # token types in GGUF
_NO_TOKEN = 0xFFFFFFFF  # -1, as the unsigned number that a token's id is


def read_vocabulary(values: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """What `Tokenizer` is made of, from a GGUF file's settings: its arguments by name. `where` is for messages.

    Raises
    ------
    ValueError
        The vocabulary is no byte-level BPE, its pattern is unknown here, or a setting cannot be. Names the setting.
    """
    settings = Settings(values, where)
    kind, pattern = settings.text("tokenizer.ggml.model", None), settings.text("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        raise ValueError(
            f"{where}: tokenizer.ggml.model is {shown(kind)}; only byte-level BPE ('gpt2') is read from GGUF: take the "
            "model's Hugging Face directory, whose tokenizer.json says everything"
        )
    tokens = read_tokens(settings)
    core = _core(settings, tokens, pattern)
    ids = {name: _special_id(settings, name, len(tokens)) for name in ("bos", "eos", "eot", "eom")}
    ids = {name: id for name, id in ids.items() if id is not None}
    by_text = {name: id for name in ENDS if (id := core.token_to_id(name)) is not None}
    if {"<|return|>", "<|call|>"} <= by_text.keys():
        by_text.pop("<|end|>", None)  # there it ends a part of the turn
    core.add_special_tokens([AddedToken(name, normalized=False) for name in by_text])
    return {
        "core": core,
        "eos_ids": sorted({ids[name] for name in ("eos", "eot", "eom") if name in ids} | set(by_text.values())),
        "bos_id": _bos_id(settings, pattern, ids.get("bos")),
        "chat_template": settings.text("tokenizer.chat_template", None),
        "special": {f"{name}_token": tokens[id] for name, id in ids.items()},
    }


def read_tokens(settings: Settings) -> list[str]:
    """The vocabulary, in the order of the ids."""
    key = "tokenizer.ggml.tokens"
    tokens = settings.texts(key)
    if not tokens:
        raise settings.wrong(key, "a list of at least one text")
    tokens = [token or f"[EMPTY_{id}]" for id, token in enumerate(tokens)]
    if len(set(tokens)) < len(tokens):
        ((twice, _),) = Counter(tokens).most_common(1)
        raise ValueError(f"{settings.where}: {key} holds {shown(twice)} twice; download the file again")
    return tokens


def _core(settings: Settings, tokens: list[str], pattern: str) -> tokenizers.Tokenizer:
    pre_tokenizer = _pre_tokenizer(settings, pattern)
    vocabulary = {token: id for id, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in settings.texts("tokenizer.ggml.merges", [])]
    try:
        core = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pattern in _LLAMA3_NAMES))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(
            f"{settings.where}: tokenizer.ggml.merges do not go with tokenizer.ggml.tokens ({error})"
        ) from error
    core.pre_tokenizer = pre_tokenizer
    core.decoder = decoders.ByteLevel()
    kinds = settings.whole_numbers("tokenizer.ggml.token_type", [])
    if kinds and len(kinds) < len(tokens):
        raise ValueError(
            f"{settings.where}: tokenizer.ggml.token_type must be one for each of the {len(tokens)} tokens, got "
            f"{len(kinds)}"
        )
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds, strict=False)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    core.add_special_tokens([token for token in added if token.special])
    core.add_tokens([token for token in added if not token.special])
    return core


def _special_id(settings: Settings, name: str, count: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    id = settings.raw(key)
    if id is None or (id in (-1, _NO_TOKEN) and not isinstance(id, float)):
        return None
    if not is_whole(id) or not 0 <= id < count:
        raise settings.wrong(key, f"a token's id, from 0 to {count - 1} by tokenizer.ggml.tokens")
    return id


def _bos_id(settings: Settings, pattern: str, bos: int | None) -> int | None:
    wanted = settings.flag("tokenizer.ggml.add_bos_token", None)
    if wanted and bos is None:
        raise ValueError(
            f"{settings.where}: tokenizer.ggml.add_bos_token is on, and tokenizer.ggml.bos_token_id names no token"
        )
    return bos if wanted or (wanted is None and pattern in _LLAMA3_NAMES) else None


def _pre_tokenizer(settings: Settings, name: str) -> pre_tokenizers.PreTokenizer:
    """How text is cut into words before bytes are merged, by the name that llama.cpp gives the pattern."""
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    llama3 = [pre_tokenizers.Split(Regex(_LLAMA3), "isolated"), bytes_only]
    qwen2 = [pre_tokenizers.Split(Regex(_LLAMA3.replace("{1,3}", "")), "isolated"), bytes_only]
    known = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True), gpt2],
        "gpt-2": [gpt2],
        "llama-bpe": llama3,
        "qwen2": qwen2,
    }
    others = {"llama3": llama3, "llama-v3": llama3, "deepseek-r1-qwen": qwen2}
    if name not in known | others:
        raise ValueError(
            f"{settings.where}: tokenizer.ggml.pre is {shown(name)}; known are {', '.join(known)}: take the model's "
            "Hugging Face directory"
        )
    return pre_tokenizers.Sequence((known | others)[name])
