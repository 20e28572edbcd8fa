"""Text from a model: one token, appended, and again.

    model = load_model()
    print(generate(model, "What is the capital of France?").text)

The first step runs the whole prompt, each further one the newest token; without a cache, each step runs everything
again. Which attention runs, and who picks the token, can both be yours: `attention=`, `next_token=`.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from numbers import Real
from typing import SupportsIndex

import torch
from torch import Tensor, nn

from llmsys.cache import Backend, NoCache, as_backend
from llmsys.models.modules import unwrapped
from llmsys.models.sampling import Sampler, check_logits, sampler, whole_number
from llmsys.models.text.prompt import Prompt, token_ids
from llmsys.models.text.text_stream import TextStream


@dataclass(frozen=True)
class Generation:
    """What a model said, and how long it took."""

    text: str  # "" where the model has no tokenizer
    tokens: list[int] = field(repr=False)  # without the one that ended it
    prompt_tokens: list[int] = field(repr=False)
    seconds: float  # from the call to the last token
    first_token_seconds: float  # of these, until the first token: the prompt's share
    stopped: bool  # the model ended its turn (otherwise max_new_tokens did)

    @property
    def tokens_per_second(self) -> float:
        """New tokens a second, the prompt's share of the time included."""
        return len(self.tokens) / self.seconds


def generate(
    model: nn.Module,
    prompt: Prompt,
    *,
    attention: str | Callable | Backend = "sdpa",
    cache: bool | None = None,
    max_new_tokens: SupportsIndex = 128,
    temperature: Real = 0.0,
    top_k: SupportsIndex | None = None,
    top_p: Real | None = None,
    seed: SupportsIndex | None = None,
    next_token: Sampler | None = None,
    stream: Callable[[str], object] | None = None,
) -> Generation:
    """Let the model continue `prompt`, until it ends its turn or `max_new_tokens` are there.

    Parameters
    ----------
    prompt
        A string: one user's message, put into the model's chat template (as it is, if there is none). A list of
        messages `{"role", "content"}`: a conversation. A list of token ids, or a tensor or NumPy array of them, (T,) or
        (1, T): exactly these.
    attention
        A stage's name (`llmsys.attention.STAGES`) or a backend's (`llmsys.cache.BACKENDS`), a callable with a stage's
        contract, or a backend.
    cache
        Keep K and V between steps. By default a stage of the library has a cache, and a callable does not: it then gets
        the whole sequence each time, Tq = Tk.
    temperature, top_k, top_p, seed
        How the next token is drawn (`llmsys.models.sampling.sampler`). Temperature 0 is greedy.
    next_token
        Picks the next token instead: logits (1, T, V) of **all** positions of the sequence so far, prompt included and
        cache or no cache, to an int64 tensor (1,). (With a cache, a step computes its own rows and the older ones are
        kept.)
    stream
        Called with each piece of text as soon as it is there, e.g. `partial(print, end="", flush=True)`.

    Raises
    ------
    ValueError
        An argument is out of its range; the prompt is empty, several, longer than the model's context, or holds ids
        that the model does not know; or `next_token` or `attention` returned something else than its contract says.
        Names it.
    FloatingPointError
        The model's logits are not finite: NaN, +∞, or −∞ all of them (`llmsys.models.sampling.check_logits`).
    """
    start = time.perf_counter()
    run = _Run(model, prompt, attention, cache, max_new_tokens, temperature, top_k, top_p, seed, next_token)
    text = []
    tokens = []
    first = None
    for token, piece in run.steps():
        first = first or time.perf_counter()
        if token is not None:
            tokens.append(token)
        if piece:
            text.append(piece)
            if stream is not None:
                stream(piece)
    end = time.perf_counter()
    return Generation("".join(text), tokens, run.prompt, end - start, (first or end) - start, run.stopped)


def stream_generate(
    model: nn.Module,
    prompt: Prompt,
    *,
    attention: str | Callable | Backend = "sdpa",
    cache: bool | None = None,
    max_new_tokens: SupportsIndex = 128,
    temperature: Real = 0.0,
    top_k: SupportsIndex | None = None,
    top_p: Real | None = None,
    seed: SupportsIndex | None = None,
    next_token: Sampler | None = None,
) -> Iterator[str]:
    """`generate`, as an iterator over pieces of text: whole characters, as soon as they are there.

    Arguments and errors are `generate`'s; bad arguments are refused at the call, not at the first piece.
    """
    run = _Run(model, prompt, attention, cache, max_new_tokens, temperature, top_k, top_p, seed, next_token)
    if run.model.tokenizer is None:
        raise ValueError("this model has no tokenizer, so there is no text to stream: use generate(…).tokens")
    return (piece for _, piece in run.steps() if piece)


class _Run:
    """One call of `generate`: its arguments checked, then its steps."""

    def __init__(self, model, prompt, attention, cache, max_new_tokens, temperature, top_k, top_p, seed, next_token):
        model = unwrapped(model)
        if not model.is_whole:
            raise ValueError("model must be a whole one to generate, and this is a part, without some layers or an end")
        max_new_tokens = whole_number("max_new_tokens", max_new_tokens, at_least=1)
        if next_token is not None and (temperature != 0 or top_k is not None or top_p is not None):
            raise ValueError("next_token picks the token by itself: leave out temperature, top_k and top_p")
        self.model = model
        self.prompt = token_ids(model, prompt)
        self.pick = sampler(temperature, top_k, top_p, seed) if next_token is None else next_token
        self.all_logits = next_token is not None
        context = model.config.context_length
        if len(self.prompt) >= context:
            raise ValueError(
                f"prompt must be shorter than the model's context of {context} tokens, got {len(self.prompt)}"
            )
        self.capacity = min(len(self.prompt) + max_new_tokens, context)
        self.backend = as_backend(attention, cache=cache, capacity=self.capacity, spec=model.cache_spec())
        self.whole = isinstance(self.backend, NoCache)
        self.logits: Tensor | None = None  # (1, capacity, V): rows so far, for a sampler that sees them all
        self.stopped = False

    def steps(self) -> Iterator[tuple[int | None, str]]:
        """Each new token with the text that it completes; (None, text) for what is left at the end."""
        tokenizer = self.model.tokenizer
        ends = tokenizer.eos_ids if tokenizer else frozenset()
        text = TextStream(tokenizer) if tokenizer else None
        sequence = list(self.prompt)
        fed = 0
        while len(sequence) < self.capacity:
            token = self._step(sequence if self.whole else sequence[fed:], len(sequence))
            fed = len(sequence)
            if token in ends:
                self.stopped = True
                break
            sequence.append(token)
            yield token, text.push(token) if text else ""
        yield None, text.flush() if text else ""

    @torch.inference_mode()
    def _step(self, ids: list[int], length: int) -> int:
        tokens = torch.tensor([ids], device=self.model.device)
        x = self.model.hidden(tokens, self.backend)  # (1, T, C)
        if not self.all_logits:
            return int(self.pick(self.model.head(x[:, -1:])))
        new = self.model.head(x)
        check_logits(new)
        return self._picked(self._all_rows(new, length))

    def _all_rows(self, new: Tensor, length: int) -> Tensor:
        if new.shape[1] == length:
            first_step = new
            if not self.whole:
                self.logits = new.new_empty(1, self.capacity, new.shape[2])
                self.logits[:, :length] = new
            return first_step
        self.logits[:, length - new.shape[1] : length] = new
        return self.logits[:, :length]

    def _picked(self, logits: Tensor) -> int:
        token = self.pick(logits)
        V = logits.shape[2]
        if not isinstance(token, Tensor):
            raise ValueError(f"next_token must return an int64 tensor of shape (1,), got {type(token).__name__}")
        if token.shape != (1,) or token.dtype != torch.int64:
            raise ValueError(
                "next_token must return an int64 tensor of shape (1,), one token id a sequence, got "
                f"{token.dtype} of shape {tuple(token.shape)} for logits of shape {tuple(logits.shape)}"
            )
        if not 0 <= int(token) < V:
            raise ValueError(f"next_token must return ids from 0 to {V - 1}, got {int(token)}")
        return int(token)
