"""What a model is asked, as token ids: a text, a conversation, or the ids themselves, from whichever library they come.

A prompt is one row of ids. Where a library hands over a batch, its one row is taken, and several are refused: a model
that answered them as if they were one text would answer none of them.
"""

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Prompt = Any
"""A str; a sequence of messages, `{"role": …, "content": …}` each; or token ids: a sequence of whole numbers, or a
tensor or NumPy array of them, (T,) or (1, T). The type is any, because what is none of these is refused in words."""

_KINDS = "a text, a list of messages or a row of token ids"


def token_ids(model: nn.Module, prompt: Prompt) -> list[int]:
    """The ids that `prompt` stands for. A text becomes a user's message where the tokenizer has a chat template.

    Raises
    ------
    ValueError
        It is empty, holds several prompts or numbers that are no token ids of this model, or needs a tokenizer and the
        model has none.
    """
    ids = _ids(model, prompt)
    if not ids:
        raise ValueError("prompt must not be empty: of this one no token is left")
    V = model.config.vocab_size
    if min(ids) < 0 or max(ids) >= V:
        place, token = next((place, token) for place, token in enumerate(ids) if not 0 <= token < V)
        raise ValueError(f"prompt: its tokens must be from 0 to {V - 1}, got {token} at place {place}")
    return ids


def _ids(model: nn.Module, prompt: Prompt) -> list[int]:
    if isinstance(prompt, Tensor | np.ndarray):
        return _from_array(prompt)
    if isinstance(prompt, Mapping | bytes | bytearray) or not isinstance(prompt, Sequence):
        raise ValueError(f"prompt must be {_KINDS}, got {type(prompt).__name__}")
    if len(prompt) == 0:
        raise ValueError("prompt must not be empty")
    if isinstance(prompt, str):
        return _from_text(model, prompt)
    if set(map(type, prompt)) == {int}:  # as nearly always
        return list(prompt)
    if any(isinstance(each, Mapping | str) for each in prompt):
        return _tokenizer(model).chat(prompt)
    if all(isinstance(each, Sequence) or getattr(each, "ndim", 0) for each in prompt):  # rows
        if len(prompt) > 1:
            raise ValueError(
                f"prompt must be one row of token ids, got {len(prompt)} rows: generate answers one prompt"
            )
        return _ids(model, prompt[0])
    return [_token(each) for each in prompt]


def _from_array(prompt: Tensor | np.ndarray) -> list[int]:
    shape = tuple(prompt.shape)
    if len(shape) not in (1, 2) or len(shape) == 2 and shape[0] != 1:
        raise ValueError(
            f"prompt must be one row of token ids, (T,) or (1, T), got shape {shape}: one prompt at a time"
        )
    if isinstance(prompt, Tensor):
        whole = not (prompt.dtype.is_floating_point or prompt.dtype.is_complex or prompt.dtype == torch.bool)
    else:
        whole = prompt.dtype.kind in "iu"
    if not whole:
        raise ValueError(f"prompt must hold token ids, which are whole numbers, got {prompt.dtype}")
    return prompt.reshape(-1).tolist()


def _from_text(model: nn.Module, prompt: str) -> list[int]:
    tokenizer = _tokenizer(model)
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # half of a pair, as a terminal makes of bytes that are no UTF-8
        raise ValueError(f"prompt must be text, and its character {error.start} is none: {error.reason}") from None
    if tokenizer.chat_template is not None:
        return tokenizer.chat([{"role": "user", "content": prompt}])
    return ([] if tokenizer.bos_id is None else [tokenizer.bos_id]) + tokenizer.encode(prompt)


def _tokenizer(model: nn.Module):
    if model.tokenizer is None:
        raise ValueError("prompt must be a list of token ids here, for this model has no tokenizer")
    return model.tokenizer


def _token(token: Any) -> int:
    if not isinstance(token, bool | np.bool_) and getattr(token, "dtype", None) != torch.bool:
        try:
            return index(token)
        except TypeError:
            pass
    raise ValueError(f"prompt must be {_KINDS}, which are whole numbers; one of it is {token!r}")
