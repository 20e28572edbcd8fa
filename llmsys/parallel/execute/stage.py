"""A stage that computes: its part of the model, and what it keeps of each microbatch between F, I and W.

    F   x → y               keeps x and y, with autograd's graph between them
    I   dy → dx             drops the graph; what the matrices put off is kept in its place
    W                       goes through what was put off, and keeps nothing

x is the microbatch's tokens at the first stage and hidden states (B, T, C) at the others; y is hidden states, and at
the last stage the loss, whose dy is 1.

At the first stage nobody waits for dx, for tokens have none. So nothing is cut there: I only keeps dy, and W is the
whole backward pass. That is faster than its two halves. It keeps the graph between I and W, too: more bytes where a
schedule puts W off, but no more microbatches at a time.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmsys.cache import Backend, as_backend
from llmsys.models.llama import Llama
from llmsys.models.training_step import token_loss
from llmsys.parallel.execute.put_off import PutOff, SplitLinear, Waiting

Key = tuple[int, int]
"""(replica, stage)."""


class Stage:
    """Some of a model's layers, run for one microbatch after another.

    Parameters
    ----------
    part
        The layers, with the embedding if they begin with the first and the head if they end with the last.
    later
        The factory that made the part's matrices, if backward passes shall be split. None at the first stage; at others
        None makes I the whole backward pass, and W has nothing to do.
    backend
        Who attends; a stage's name or a function, as for `llmsys.training.train`.

    Raises ValueError where a first stage has `later`, and where the part's matrices put off what nobody will take.
    """

    def __init__(self, part: Llama, later: PutOff | None = None, backend: str | Callable | Backend = "sdpa"):
        self.part, self.backend = part, as_backend(backend, spec=part.cache_spec())
        self.is_first, self.is_last = part.embedding is not None, part.head is not None
        if self.is_first and later is not None:
            raise ValueError("later must be None at the first stage, where nobody waits for I: its W is the whole")
        matrices = [each for each in part.modules() if isinstance(each, SplitLinear)]
        if matrices and later is None:
            raise ValueError("part must be made without a factory that puts off, or `later` must be that factory")
        names = [id(weight) for _, weight in part.named_parameters(remove_duplicate=False)]
        for each in matrices:  # a weight that two layers share: autograd adds both gradients, once, in I
            each.whole = names.count(id(each.weight)) > 1
        self._later = later
        self._between: dict[int, tuple[Tensor, Tensor]] = {}  # x and y of microbatches between F and I
        self._waiting: dict[int, Callable[[], None]] = {}  # of microbatches between I and W

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """Its weights, by the names that they have in the whole model."""
        return dict(self.part.named_parameters())

    @property
    def device(self) -> torch.device:
        return self.part.device

    def boundary(self, tokens: Int[Tensor, "B T1"]) -> Float[Tensor, "B T C"]:
        """An empty tensor of the size and kind of what passes between stages for a microbatch."""
        B, T = tokens.shape[0], tokens.shape[1] - 1
        part = self.part
        return torch.empty(B, T, part.config.hidden_size, dtype=part.dtype, device=part.device)

    def forward(
        self, microbatch: int, x: Float[Tensor, "B T C"] | None, tokens: Int[Tensor, "B T1"], divisor: float = 1.0
    ) -> Tensor:
        """F: the output for the next stage; of the last stage the microbatch's mean loss, divided by `divisor`.

        x is the output of the stage before, None at the first. `tokens` are the microbatch's, and the one after: the
        first stage reads them, and the last compares. Under `torch.no_grad()` nothing is kept.
        """
        if self.is_first:
            x = tokens[:, :-1]
        else:
            x = x.detach().requires_grad_(torch.is_grad_enabled())
        y = self.part(x, self.backend)
        if self.is_last:
            y = token_loss(y, tokens[:, 1:]) / divisor
        if torch.is_grad_enabled():
            self._between[microbatch] = (x, y)
        return y.detach()

    def backward_input(self, microbatch: int, dy: Tensor | None) -> Tensor | None:
        """I: the gradient of the stage's input, None at the first stage. `dy` is None at the last one."""
        x, y = self._between.pop(microbatch)
        if self.is_first:
            self._waiting[microbatch] = partial(y.backward, dy)
            return None
        y.backward(dy)
        self._waiting[microbatch] = partial(_finish, self._later.take() if self._later is not None else [])
        return x.grad

    def backward_weight(self, microbatch: int) -> None:
        """W: the gradients that I has put off; at the first stage all of them. ValueError before I, or twice."""
        if microbatch not in self._waiting:
            raise ValueError(f"W of microbatch {microbatch} must come once, after its I")
        self._waiting.pop(microbatch)()

    def forget(self) -> None:
        """Drop what is kept of microbatches, as after a step that failed."""
        self._between.clear()
        self._waiting.clear()
        if self._later is not None:
            self._later.take()

    @property
    def unfinished(self) -> tuple[int, ...]:
        """Microbatches of which something is still kept."""
        return tuple(sorted({*self._between, *self._waiting}))


def _finish(waiting: list[Waiting]) -> None:
    for each in waiting:
        each.finish()
