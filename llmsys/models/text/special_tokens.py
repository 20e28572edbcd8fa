"""The tokenizer of a Hugging Face directory: tokenizer.json, and the special tokens in whichever file they stand.

    tokenizer.json            vocabulary, merges, the tokens added to it; what comes before and behind a text
    tokenizer_config.json     bos_token, eos_token …; added_tokens_decoder: tokens by id; the chat template
    special_tokens_map.json   of older checkpoints, read where there is no added_tokens_decoder: bos_token …
    added_tokens.json         of older ones still, read with it: ids by token
    chat_template.jinja       the chat template; comes before tokenizer_config.json's

Who comes before whom is as in transformers. Of tokenizer.json, "truncation" and "padding" are left out: they are what
a training script had switched on when it saved the file, and would cut a prompt or fill it up.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from llmsys.models.checkpoints.settings import Settings, is_whole, read_settings, shown

STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SWITCHES = ("lstrip", "rstrip", "normalized", "single_word", "special")  # of an added token


def read_tokenizer(path: Path) -> dict[str, Any]:
    """What `Tokenizer` is made of, from the directory at `path`: its arguments by name.

    Raises
    ------
    ValueError
        A file is damaged or says what cannot be. Names the file and the key.
    """
    core = read_core(path / "tokenizer.json")
    settings = read_settings(path / "tokenizer_config.json")
    named = add_special_tokens(core, settings, path)
    core.encode_special_tokens = settings.flag("split_special_tokens", False)
    end = named.get("eos_token")
    end_id = None if end is None else core.token_to_id(end)
    return {
        "core": core,
        "eos_ids": [] if end_id is None else [end_id],
        "bos_id": first_token(core, path / "tokenizer.json"),
        "chat_template": chat_template(settings, path),
        "special": named,
    }


def read_core(file: Path) -> tokenizers.Tokenizer:
    """The `tokenizers` object in tokenizer.json, which neither cuts nor fills up."""
    try:
        core = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{file}: not a tokenizer{_blamed(file)} ({error}); download it again") from error
    core.no_truncation()
    core.no_padding()
    return core


def add_special_tokens(core: tokenizers.Tokenizer, settings: Settings, path: Path) -> dict[str, str]:
    """Add to `core` the tokens that the files beside tokenizer.json name. Returns those with a role: "bos_token" …"""
    roles, further = _roles(settings), _further(settings)
    if "added_tokens_decoder" in settings:
        source = f"{settings.where}: added_tokens_decoder"
        added = _by_id(settings.table("added_tokens_decoder"))
    else:
        old = read_settings(path / "special_tokens_map.json")
        roles = {role: token for role, token in roles.items() if role not in old.values}
        roles |= _roles(old, mark="content")
        further += _further(old)
        source = f"{path / 'added_tokens.json'}"
        added = _with_ids(read_settings(path / "added_tokens.json"), special={str(token) for token in roles.values()})
    known = {token.content: token for token in core.get_added_tokens_decoder().values()}
    for id in sorted(added):
        if added[id].content not in known:
            _add(core, added[id], id, source)
    known |= {token.content: token for token in added.values() if token.content not in known}
    for token in (*roles.values(), *(token for _, token in further)):
        if isinstance(token, str):
            token = known.get(token) or AddedToken(token, normalized=False)
        core.add_special_tokens([token])
    named = roles | {role: token for role, token in further if role is not None}
    return {role: token if isinstance(token, str) else token.content for role, token in named.items()}


def first_token(core: tokenizers.Tokenizer, file: Path | str) -> int | None:
    """The token that the checkpoint's own post-processing puts before a text; None where it puts none."""
    for text in _texts(core):
        try:
            plain = core.encode(text, add_special_tokens=False).ids
        except Exception:  # a text that this vocabulary lacks
            continue
        if not plain:
            continue
        try:
            whole = core.encode(text).ids
        except Exception as error:
            raise ValueError(f"{file}: post_processor cannot be applied ({error}); download it again") from error
        before = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), None)
        if before is None or before > 1:
            raise ValueError(
                f"{file}: post_processor puts {shown(whole[:before])} in the place of a text's tokens {shown(plain)}; "
                "load_model knows at most one token before a text"
            )
        return whole[0] if before else None
    return None


def chat_template(settings: Settings, path: Path) -> str | None:
    """The chat template of a directory; where there are several by name, the default one."""
    if (path / "chat_template.jinja").is_file():
        try:
            return (path / "chat_template.jinja").read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path / 'chat_template.jinja'}: not text ({error}); download it again") from error
    found = settings.raw("chat_template")
    if found is None or isinstance(found, str):
        return found
    templates = found
    if isinstance(found, list) and all(isinstance(each, dict) for each in found):
        templates = {str(each.get("name")): each.get("template") for each in found}
    if not isinstance(templates, dict) or not isinstance(templates.get("default"), str):
        raise settings.wrong("chat_template", 'text, or several of which one is called "default"')
    return templates["default"]


def _roles(settings: Settings, mark: str = "__type") -> dict[str, str | AddedToken]:
    """The tokens with a role. A role of one model's own is under a key that ends in _token; is the token an object, it
    has a `mark`."""
    found = {}
    for key, value in settings.values.items():
        own = key.endswith("_token") and key not in ("add_bos_token", "add_eos_token")  # tokenizer.json says that
        own = own and (isinstance(value, str) or (isinstance(value, dict) and mark in value))
        if value is not None and (key in STANDARD or own):
            found[key] = _token(settings, key, value)
    return found


def _further(settings: Settings) -> list[tuple[str | None, str | AddedToken]]:
    """Special tokens beyond these, each with a role of its own or, out of a list, without."""
    keys = [key for key in ("extra_special_tokens", "additional_special_tokens") if key in settings]
    if not keys:
        return []
    value = settings.raw(keys[0])
    if not isinstance(value, (list, dict)):
        raise settings.wrong(keys[0], "a list of tokens, or an object of such")
    pairs = value.items() if isinstance(value, dict) else [(None, token) for token in value]
    return [(role, _token(settings, keys[0], token)) for role, token in pairs]


def _by_id(table: Settings) -> dict[int, AddedToken]:
    """The tokens of added_tokens_decoder."""
    found = {}
    for key, value in table.values.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and isinstance(value, dict)):
            raise table.wrong(key, "an object under a token's id, a whole number from 0")
        found[int(key)] = _token(table, key, value)
    return found


def _with_ids(ids: Settings, special: set[str]) -> dict[int, AddedToken]:
    """The tokens of added_tokens.json, `special` or not."""
    found = {}
    for token, id in ids.values.items():
        if not is_whole(id) or id < 0:
            raise ids.wrong(token, "a token's id, a whole number from 0")
        found[id] = AddedToken(token, normalized=token not in special, special=token in special)
    return found


def _token(settings: Settings, key: str, value: Any) -> str | AddedToken:
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        switches = {name: value[name] for name in _SWITCHES if value.get(name) is not None}
        if all(isinstance(switch, bool) for switch in switches.values()):
            return AddedToken(value["content"], **switches)
    raise settings.wrong(key, 'text, or an object with a "content" that is text and switches that are true or false')


def _add(core: tokenizers.Tokenizer, token: AddedToken, id: int, source: str) -> None:
    """Add a token that must get the id `id`: the model knows it by that."""
    (core.add_special_tokens if token.special else core.add_tokens)([token])
    if core.token_to_id(token.content) != id:
        raise ValueError(
            f"{source} gives {token.content!r} the id {id}, and it would get {core.token_to_id(token.content)}, for "
            "tokenizer.json lacks it; download the directory again"
        )


def _texts(core: tokenizers.Tokenizer) -> Iterator[str]:
    """Texts of which this vocabulary should know one."""
    yield from ("a", "0", " ")
    for id in range(min(core.get_vocab_size(), 1000)):
        yield core.id_to_token(id) or ""


def _blamed(file: Path) -> str:
    """Which key makes tokenizer.json unreadable, in words, if it becomes readable without it."""
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return ""
    if not isinstance(whole, dict):
        return ""
    harmless: Mapping[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }  # fmt: skip
    for key, value in harmless.items():
        try:
            tokenizers.Tokenizer.from_str(json.dumps(whole | {key: value}))
        except Exception:
            continue
        return f", by its {key}"
    return ""
