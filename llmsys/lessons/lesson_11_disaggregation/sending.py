"""A model's prefill that sends its cache while it computes, by an order of the reader's, and a decoder that goes on.

    with Wire(buffers=2) as wire:
        first = prefill(model, prompt, Sending(wire, order))
    decode(model, first, Kept.of(wire.received), tokens=20)

Both sides keep keys and values in the plainest way there is: a tensor for each layer, which grows.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from llmsys.attention import sdpa_attention
from llmsys.attention.rotary import Rotation, rotate
from llmsys.cache import Batch
from llmsys.lessons.lesson_11_disaggregation.wire import Action, Wire
from llmsys.models import Llama


class Kept:
    """A backend of one sequence that keeps each layer's keys, rotated, and values: (1, Hkv, T, D).

    Attributes
    ----------
    layers : dict
        Layer → (keys, values).
    """

    def __init__(self):
        self.layers: dict[int, tuple[Tensor, ...]] = {}

    @classmethod
    def of(cls, layers: Mapping[int, tuple[Tensor, ...]]) -> "Kept":
        """One that goes on from what another has computed."""
        found = cls()
        found.layers = dict(layers)
        return found

    def begin(self, tokens: Tensor) -> Batch:
        start = self.layers[0][0].shape[2] if self.layers else 0
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        return Batch(positions, max_query_len=tokens.shape[1], max_seq_len=start + tokens.shape[1])

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, batch: Batch, *, turn: Rotation | None = None,
        scale: float | None = None,
    ) -> Tensor:  # fmt: skip
        q, k = rotate(q, turn), rotate(k, turn)
        if layer in self.layers:
            k, v = (torch.cat(pair, dim=2) for pair in zip(self.layers[layer], (k, v), strict=True))
        self.layers[layer] = k, v
        return sdpa_attention(q, k, v, causal=True, scale=scale)


class Sending(Kept):
    """The same, of a prompt, whose layers go onto a wire by an order as they are computed.

    ValueError in the step where the order computes another layer than the model.
    """

    def __init__(self, wire: Wire, order: Sequence[Action]):
        super().__init__()
        self._wire, self._left = wire, list(order)

    def attend(self, layer: int, *args, **options) -> Tensor:
        self._until_compute()
        if not self._left or self._left.pop(0) != ("compute", layer):
            raise ValueError(f"order must compute layer {layer} here: the model does")
        o = super().attend(layer, *args, **options)
        self._wire.put(layer, self.layers[layer])
        self._until_compute(sends_only=True)
        return o

    def finish(self) -> None:
        """What is left of the order when the model is done."""
        self._until_compute()
        if self._left:
            raise ValueError(f"order goes on with {self._left[0]}, and the model has no such layer")

    def _until_compute(self, *, sends_only: bool = False) -> None:
        while self._left and self._left[0][0] in (("send",) if sends_only else ("send", "wait")):
            what, layer = self._left.pop(0)
            (self._wire.send if what == "send" else self._wire.wait)(layer)


@torch.no_grad()
def prefill(model: Llama, prompt: Sequence[int], cache: Kept) -> int:
    """The first token after a prompt, greedily."""
    device = next(model.parameters()).device
    logits = model(torch.tensor([list(prompt)], device=device), cache)
    if isinstance(cache, Sending):
        cache.finish()
    return int(logits[0, -1].argmax())


@torch.no_grad()
def decode(model: Llama, first: int, cache: Kept, *, tokens: int) -> list[int]:
    """`first`, and the tokens after it, greedily: so many in all."""
    device, said = next(model.parameters()).device, [first]
    while len(said) < tokens:
        logits = model(torch.tensor([[said[-1]]], device=device), cache)
        said.append(int(logits[0, -1].argmax()))
    return said
