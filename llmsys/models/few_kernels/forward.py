"""The step of few sequences: which kernels are launched on what, in place of a model's `forward`.

For one sequence a step of a small model reads each weight once, 1.2 GB for Qwen3-0.6B, which an H100 can do in 0.4 ms.
A step of small kernels takes three times as long, though it reads no more: every kernel begins with nothing asked of
memory, and ends with most of the GPU idle. Here there are fewer kernels, and each asks for its weights while the one
before it runs (`pieces`).

    embedding                                                       h
    each layer:   qkv
                  attention, in parts
                  output, which puts the parts together; with several sequences that is a kernel of its own, merge
                  gate_up
                  down
    head                                                            logits

Results are those of the model, but for rounding: what flows between kernels is fp32, or bf16 where the model's own is.
A step of S rows gives the same to the last bit each time, whoever is in the other rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmsys.attention.flash.tiles import LOG2_E
from llmsys.attention.rotary import frequencies
from llmsys.cache import Backend, Batch
from llmsys.models.few_kernels.plans import Plan, Tile, most_sequences, piece_of, plan_for, power_from
from llmsys.models.few_kernels.refusals import refusal, refused_cache
from llmsys.models.llama import Llama


@dataclass(frozen=True)
class Kernels:
    """The kernels of a step, or recorders in their place (`llmsys.hardware.launches`)."""

    embedding: Any
    qkv: Any
    attention: Any
    output: Any
    merge: Any
    gate_up: Any
    down: Any
    head: Any


class FewKernelForward:
    """A model's decode step, of at most `most` sequences with one token each, as few kernels.

    Called like the model, `forward(tokens, cache, batch)`, with a batch of `llmsys.cache.batch_of`, whose rows beyond
    its own sequences (slot −1, no keys) change nothing. Nothing waits for the GPU and shapes alone decide what is
    launched, so a CUDA graph can hold a step. What a step leaves between its kernels lies in buffers of this object:
    steps on two streams at once want two of these. The weights are the model's own.

    Parameters
    ----------
    most
        Sequences in a step, by which buffers are sized; None for `most_sequences(model.config)`, as many as this is
        good for.
    plan
        How the work is cut up; None for `plan_for(model.config, S)`.
    kernels
        In place of the library's.
    dependent
        Whether a kernel is launched before the one before it has ended. None: where the GPU can, from compute
        capability 9.0 on.

    Raises
    ------
    ValueError
        The model is none that it can take (`takes`); or in a call, the cache or the batch is not. Says why.
    """

    def __init__(
        self,
        model: Llama,
        *,
        most: int | None = None,
        plan: Plan | None = None,
        kernels: Kernels | None = None,
        dependent: bool | None = None,
    ):
        if most is not None and most < 1:
            raise ValueError(f"most must be at least 1, got {most}")
        if kernels is None:
            if (why := refusal(model)) is not None:
                raise ValueError(f"model must be one that few kernels can take: {why}")
            kernels = library_kernels()
            can = model.device.type == "cuda" and torch.cuda.get_device_capability(model.device) >= (9, 0)
            dependent = can if dependent is None else dependent and can
        most = most_sequences(model.config) if most is None else most
        self.model, self.most, self.kernels, self.dependent = model, most, kernels, bool(dependent)
        self._sms = _sms(model.device)
        self._given_plan = plan
        self._buffers = _Buffers.of(model, most, max(self.plan_of(S).splits for S in range(1, most + 1)))
        self._specs = [layer.cache_spec(model.dtype) for layer in model.layers]
        self._taken: Backend | None = None

    def takes(self, cache: Backend) -> bool:
        """Whether a step over this cache can be run here."""
        return refusal(self.model, cache) is None

    def plan_of(self, S: int) -> Plan:
        """How a step of S sequences is cut up."""
        return self._given_plan or plan_for(self.model.config, S, self.model.dtype.itemsize, self._sms)

    def __call__(self, tokens: Int[Tensor, "1 S"], cache: Backend, batch: Batch) -> Float[Tensor, "1 L V"]:
        """The logits of the tokens that `batch.logits_indices` names, (1, L, V), in the model's dtype."""
        S = self._layers(tokens, cache, batch)
        wanted = batch.logits_indices
        wanted = self._buffers.all[:S] if wanted is None else wanted
        L, V = wanted.shape[0], self.model.config.vocab_size
        logits = torch.empty(1, L, V, dtype=self.model.dtype, device=self.model.device)
        if L:
            self._head(wanted, logits, S)
        return logits

    def hidden(self, tokens: Int[Tensor, "1 S"], cache: Backend, batch: Batch) -> Float[Tensor, "1 S C"]:
        """What the head is given, (1, S, C)."""
        S = self._layers(tokens, cache, batch)
        return self.model.norm(self._buffers.h[None, :S]).to(self.model.dtype)

    def _layers(self, tokens: Tensor, cache: Backend, batch: Batch) -> int:
        """Everything but the head: S, the number of sequences, whose residual is in the buffers then."""
        self._check(tokens, cache, batch)
        S = tokens.shape[1]
        with torch.cuda.device_of(tokens):
            self._embed(tokens, batch)
            for layer, spec, scale in zip(self.model.layers, self._specs, self._next_scales(), strict=True):
                self._layer(layer, *cache.pages_of(spec, self.model.device), batch, S, scale)
        return S

    def _next_scales(self) -> Sequence[Tensor]:
        """Of each layer, the weight of the norm that comes after it."""
        norms = [layer.attention_norm for layer in self.model.layers][1:]
        return [norm.weight for norm in (*norms, self.model.norm)]

    def _embed(self, tokens: Tensor, batch: Batch) -> None:
        model, b = self.model, self._buffers
        C, HALF = model.config.hidden_size, model.config.head_size // 2
        first = model.layers[model.layer_range.start]
        # The step's first kernel waits for the step before it to end, so it is launched like any other.
        self.kernels.embedding[(tokens.shape[1],)](
            tokens, batch.positions, model.embedding.weight, b.frequency, first.attention_norm.weight, b.h, b.x,
            b.down_squares, b.cos, b.sin, C=C, HALF=HALF, BLOCK_C=power_from(C), BLOCK_HALF=power_from(HALF),
            **_parts_of(C, self.plan_of(tokens.shape[1]).down), PDL=self.dependent, num_warps=4,
        )  # fmt: skip

    def _layer(self, layer, keys: Tensor, values: Tensor, batch: Batch, S: int, next_scale: Tensor) -> None:
        config, plan, b, eps = self.model.config, self.plan_of(S), self._buffers, self.model.config.norm_eps
        C, I, D, HQ, HKV = config.hidden_size, config.mlp_size, config.head_size, config.heads, config.kv_heads
        N, norm, table = (HQ + 2 * HKV) * D, layer.q_norm is not None, batch.block_table
        after_output, after_down = _parts_of(C, plan.output), _parts_of(C, plan.down)
        self._launch(
            self.kernels.qkv, -(-N // plan.qkv.rows), plan.qkv.warps, b.x, b.down_squares, layer.qkv.weight, b.qkv,
            eps, S=S, C=C, N=N, **_rows_of(plan.qkv, C), **after_down,
        )  # fmt: skip
        self._launch(
            self.kernels.attention, (HKV * plan.splits, S), plan.attention_warps, b.qkv,
            layer.q_norm.weight if norm else None, layer.k_norm.weight if norm else None, b.cos, b.sin, keys, values,
            table, batch.seq_lens, batch.slot_mapping, b.o, b.lse, table.shape[1], *keys.stride()[:3],
            *values.stride()[:3], table.stride(0), eps, LOG2_E / math.sqrt(D), HQ=HQ, HKV=HKV, D=D,
            PAGE=keys.shape[1], BLOCK_N=plan.block_n, SPLITS=plan.splits, NORM=norm, BLOCK_G=16,
        )  # fmt: skip
        into_output = (layer.output.weight, layer.mlp_norm.weight, b.h, b.x, b.output_squares)
        if S == 1:
            self._launch(
                self.kernels.output, after_output["PARTS"], plan.output.warps, b.o, b.lse, *into_output, C=C, HQ=HQ,
                D=D, SPLITS=plan.splits, R=plan.output.rows, BLOCK_HQ=power_from(HQ), PARTS=after_output["PARTS"],
            )  # fmt: skip
        else:
            self._launch(self.kernels.merge, (HQ, S), 1, b.o, b.lse, b.merged, HQ=HQ, D=D, SPLITS=plan.splits)
            self._launch(
                self.kernels.down, after_output["PARTS"], plan.output.warps, b.merged, *into_output, S=S, C=C,
                I=HQ * D, **_rows_of(plan.output, HQ * D), PARTS=after_output["PARTS"],
            )  # fmt: skip
        self._launch(
            self.kernels.gate_up, -(-I // plan.gate_up.rows), plan.gate_up.warps, b.x, b.output_squares,
            layer.gate_up.weight, b.act, eps, S=S, C=C, I=I, **_rows_of(plan.gate_up, C), **after_output,
        )  # fmt: skip
        self._launch(
            self.kernels.down, after_down["PARTS"], plan.down.warps, b.act, layer.down.weight, next_scale, b.h, b.x,
            b.down_squares, S=S, C=C, I=I, **_rows_of(plan.down, I), PARTS=after_down["PARTS"],
        )  # fmt: skip

    def _head(self, wanted: Tensor, logits: Tensor, S: int) -> None:
        config, b, plan = self.model.config, self._buffers, self.plan_of(S)
        C, V, tile = config.hidden_size, config.vocab_size, plan.head
        programs = min(plan.head_programs * self._sms, -(-V // tile.rows))
        with torch.cuda.device_of(logits):
            self._launch(
                self.kernels.head, programs, tile.warps, b.x, b.down_squares, self.model.head.weight, wanted, logits,
                config.norm_eps, L=wanted.shape[0], C=C, V=V, R=tile.rows, BLOCK_C=power_from(C),
                **_parts_of(C, plan.down),
            )  # fmt: skip

    def _launch(self, kernel, grid, warps: int, *args, **constants) -> None:
        grid = grid if isinstance(grid, tuple) else (grid,)
        early = dict(launch_pdl=True) if self.dependent else {}
        kernel[grid](*args, **constants, PDL=self.dependent, num_warps=warps, **early)

    def _check(self, tokens: Tensor, cache: Backend, batch: Batch) -> None:
        if cache is not self._taken:
            if (why := refused_cache(self.model, cache)) is not None:
                raise ValueError(f"cache must be one that few kernels can take: {why}")
            self._taken = cache
        cache.check_batch(batch)
        S = tokens.shape[1] if tokens.dim() == 2 else 0
        if tokens.dim() != 2 or tokens.shape[0] != 1 or not 1 <= S <= self.most:
            raise ValueError(
                f"tokens must be (1, S), one token of each of 1 to {self.most} sequences, got {tuple(tokens.shape)}"
            )
        if batch.seq_lens.shape[0] != S or batch.max_query_len > 1 or batch.tree_mask is not None:
            raise ValueError(
                f"batch must be of one token a sequence, for {S} tokens, without a tree: got "
                f"{batch.seq_lens.shape[0]} sequences of up to {batch.max_query_len} tokens"
            )
        if (wanted := batch.logits_indices) is not None and wanted.shape[0] > self.most:
            raise ValueError(f"batch.logits_indices must be at most {self.most}, got {wanted.shape[0]}")


@dataclass(frozen=True)
class _Buffers:
    """What a step leaves between its kernels (`products`), for `most` sequences, and what all steps need."""

    h: Tensor  #               (most, C)
    x: Tensor  #               (most, C)
    qkv: Tensor  #             (most, Hq + 2 Hkv, D)
    o: Tensor  #               (most, splits, Hq, D)
    lse: Tensor  #             (most, splits, Hq)
    merged: Tensor  #          (most, Hq, D)
    act: Tensor  #             (most, I)
    output_squares: Tensor  #  (most, C), of which as many are used as the output's kernel has programs
    down_squares: Tensor  #    (most, C), the same of down's
    cos: Tensor  #             (most, D / 2)
    sin: Tensor  #             (most, D / 2)
    frequency: Tensor  #       (D / 2,)
    all: Tensor  #             (most,) 0, 1, …

    @classmethod
    def of(cls, model: Llama, most: int, splits: int) -> "_Buffers":
        config, device = model.config, model.device
        C, D, HQ = config.hidden_size, config.head_size, config.heads
        # Not float16, which cannot hold all that a residual can be.
        low = torch.bfloat16 if model.dtype == torch.bfloat16 else torch.float32

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(most, *shape, dtype=dtype, device=device)

        with torch.inference_mode(False):
            return cls(
                h=empty(C),
                x=empty(C, dtype=low),
                qkv=empty(HQ + 2 * config.kv_heads, D),
                o=empty(splits, HQ, D, dtype=low),
                lse=empty(splits, HQ),
                merged=empty(HQ, D, dtype=low),
                act=empty(config.mlp_size, dtype=low),
                output_squares=empty(C),
                down_squares=empty(C),
                cos=empty(D // 2),
                sin=empty(D // 2),
                frequency=frequencies(D, config.rope_base, config.rope_divisors, device),
                all=torch.arange(most, dtype=torch.int32, device=device),
            )


def _parts_of(C: int, tile: Tile) -> dict[str, int]:
    """In how many parts a kernel with such programs adds up the squares of a residual of C."""
    parts = -(-C // tile.rows)
    return dict(PARTS=parts, BLOCK_PARTS=power_from(parts))


def _rows_of(tile: Tile, K: int) -> dict[str, int]:
    """How a program's rows of K columns lie in its lanes: in pieces of W; OWN: lanes have different rows."""
    W = piece_of(K, tile.rows, tile.warps)
    return dict(R=tile.rows, W=W, OWN=W < 256 * tile.warps and tile.rows > 1)


def _sms(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def library_kernels() -> Kernels:
    # Triton: not before now
    from llmsys.models.few_kernels.attention import attention_kernel
    from llmsys.models.few_kernels.ends import embedding_kernel, head_kernel
    from llmsys.models.few_kernels.products import (
        down_kernel,
        gate_up_kernel,
        merge_kernel,
        output_kernel,
        qkv_kernel,
    )

    return Kernels(
        embedding_kernel,
        qkv_kernel,
        attention_kernel,
        output_kernel,
        merge_kernel,
        gate_up_kernel,
        down_kernel,
        head_kernel,
    )
