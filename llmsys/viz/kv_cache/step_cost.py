"""What a decode step reads and computes: the one place where these drawings ask the library for costs.

A step has two parts, one after the other. The products with the weights read every weight that some token needs, once
for all sequences, while they compute: the longer of the two counts. Attention reads the cache of each sequence for that
sequence alone. Activations, norms and what cards say to each other are left out, so that times are bounds from below.
"""

from dataclasses import dataclass
from functools import cached_property

from llmsys.hardware.devices import DeviceSpec
from llmsys.hardware.roofline import Operation
from llmsys.models.decode_cost import bytes_per_token, largest_batch, weights_of_step
from llmsys.models.operations import operations
from llmsys.models.shapes import DTYPES, ModelShape
from llmsys.viz.roofline.axes import model_dtype


@dataclass(frozen=True)
class StepCost:
    """One decode step of `batch` sequences of `context` tokens, on `cards` devices that share everything evenly.

    Bytes and FLOP are those of all cards together.
    """

    shape: ModelShape
    device: DeviceSpec
    cards: int
    batch: int
    context: int

    @cached_property
    def dtype(self) -> str:
        """The type of weights and cache, and of the arithmetic."""
        return model_dtype(self.device)

    @cached_property
    def weights_held(self) -> int:
        """Bytes of all weights."""
        return self.shape.parameters * DTYPES[self.dtype].itemsize

    @cached_property
    def sequence_bytes(self) -> int:
        """Bytes of the cache of one sequence."""
        return self.context * bytes_per_token(self.shape, self.dtype)

    @property
    def cache(self) -> int:
        """Bytes of the cache of all sequences; a step reads all of them."""
        return self.batch * self.sequence_bytes

    @cached_property
    def products(self) -> Operation:
        """The products with the weights: all their FLOP, and the weights that are read."""
        size, parameters = weights_of_step(self.shape, batch=self.batch, dtype=self.dtype)
        return Operation("products", 2 * parameters * self.batch, size, self.dtype)

    @cached_property
    def attention(self) -> Operation:
        """Attention: its FLOP, and the cache that is read."""
        step = operations(self.shape, batch=self.batch, queries=1, context=self.context, dtype=self.dtype)
        flops = sum(op.count * op.flops for op in step if op.name == "attention")
        return Operation("attention", flops, self.cache, self.dtype)

    @property
    def memory(self) -> int:
        """Bytes of memory of all cards."""
        return self.cards * self.device.memory_bytes

    @property
    def needed(self) -> int:
        """Bytes of weights and cache."""
        return self.weights_held + self.cache

    @property
    def largest_batch(self) -> int:
        """The most sequences of this context whose cache fits beside the weights; 0 if not one does."""
        each = bytes_per_token(self.shape, self.dtype)
        return largest_batch(self.memory, weight_bytes=self.weights_held, bytes_per_token=each, context=self.context)

    def reading(self, op: Operation) -> float:
        """Seconds to read what an operation reads."""
        return op.bytes / (self.cards * self.device.bandwidth)

    def computing(self, op: Operation) -> float:
        """Seconds for its arithmetic."""
        return op.flops / (self.cards * self.device.flops[self.dtype])

    def seconds_of(self, op: Operation) -> float:
        """The least seconds of an operation: reading and computing overlap."""
        return max(self.reading(op), self.computing(op))

    @property
    def seconds(self) -> float:
        """The least seconds of the step."""
        return self.seconds_of(self.products) + self.seconds_of(self.attention)
