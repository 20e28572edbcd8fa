"""A Llama with mixtures of experts: Mixtral, Qwen3-MoE, and with DeepSeek-V3's router and a shared expert dots.llm1.

    each layer:   x = x + attention(norm(x))
                  x = x + moe(norm(x))          an MLP's place, `llmsys.moe.layer`; the first layers may keep their MLP

All else is `llmsys.models.llama`: the attention and its backend, the factory of the matrices, parts of a model. So a
cache, an engine or a trainer that takes a Llama takes this one.

What keeps the experts' loads even while it is trained is no part of a checkpoint: it is `Balance`, and says which loss
is added, and how fast the routers' biases move. The layers *return* where tokens went, and nothing is counted in them:
`routed` hands it on, `training_step` makes loss and loads of it, `after_step` moves the biases.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmsys.attention.rotary import Rotation
from llmsys.cache import Backend, Batch
from llmsys.models.llama import Layer, Llama, LlamaConfig
from llmsys.models.modules import LinearFactory
from llmsys.models.training_step import TrainingStep, token_loss
from llmsys.moe import Dispatch, MixtureOfExperts, RouterConfig, Routing, balance_loss

if TYPE_CHECKING:
    from llmsys.models.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class MixtureConfig(LlamaConfig):
    """Everything about a model of this kind that is not a weight. `mlp_size` is the dense layers'."""

    router: RouterConfig
    expert_size: int  #      I, the width inside an expert
    shared_size: int = 0  #  the width inside the shared expert; 0: there is none
    dense_layers: tuple[int, ...] = ()  # numbers of the layers that have an MLP and no experts

    def __post_init__(self):
        super().__post_init__()
        if self.expert_size < 1 or self.shared_size < 0:
            raise ValueError(
                f"expert_size must be at least 1 and shared_size at least 0, got {self.expert_size} and "
                f"{self.shared_size}"
            )
        dense = tuple(sorted(set(self.dense_layers)))
        if away := [layer for layer in dense if not 0 <= layer < self.layers]:
            raise ValueError(f"dense_layers must be of range(0, {self.layers}), got {away[0]}")
        object.__setattr__(self, "dense_layers", dense)

    @property
    def experts(self) -> int:
        """E."""
        return self.router.experts

    def has_experts(self, layer: int) -> bool:
        return layer not in self.dense_layers


@dataclass(frozen=True)
class Balance:
    """What keeps loads even in training: a loss, or the routers' biases, or both, as in DeepSeek-V3. By default none.

    Raises ValueError for a weight or a rate below 0, and a loss of another kind.
    """

    loss: str = "sequence"  # f and P are counted over each sequence, or over the "batch"
    alpha: float = 0.0  #     the loss is multiplied by this
    rate: float = 0.0  #      γ, by which a bias moves after each step (`llmsys.moe.move_bias`)

    def __post_init__(self):
        if self.loss not in ("sequence", "batch"):
            raise ValueError(f'loss must be "sequence" or "batch", got {self.loss!r}')
        if not (self.alpha >= 0 and self.rate >= 0):
            raise ValueError(f"alpha and rate must be at least 0, got {self.alpha} and {self.rate}")


class MixtureLayer(Layer):
    """A layer with a mixture of experts, `moe`, in the place of its MLP."""

    def __init__(self, config: MixtureConfig, index: int, linear: LinearFactory, **options):
        self._options = options
        super().__init__(config, index, linear)

    def add_mlp(self, config: MixtureConfig, linear: LinearFactory, name: str) -> None:
        self.moe = MixtureOfExperts(
            config.hidden_size, config.expert_size, config.router, shared_size=config.shared_size, linear=linear,
            name=f"{name}.moe", **self._options,
        )  # fmt: skip

    def mlp(self, x: Tensor) -> Tensor:
        return self.moe(x)[0]

    def routed(self, x: Tensor, turn: Rotation, backend: Backend, batch: Batch) -> tuple[Tensor, Routing]:
        """What the layer returns, and where its tokens went."""
        x = x + self.attention(self.attention_norm(x), turn, backend, batch)
        y, routing = self.moe(self.mlp_norm(x))
        return x + y, routing


class MixtureLlama(Llama):
    """A Llama with mixtures of experts, or a part of one.

    Parameters
    ----------
    config, tokenizer, layers, embedding, head, linear
        As `Llama`'s.
    dispatch, local, form
        As those of `llmsys.moe.MixtureOfExperts`, in each of its layers: where experts are, and how they are computed.
    balance
        What `training_step` and `after_step` do. It may be exchanged between two steps.

    Raises
    ------
    ValueError
        As `Llama` and `MixtureOfExperts`.
    """

    dense_layer, mixture_layer = Layer, MixtureLayer  # what the layers are, without and with experts

    def __init__(
        self,
        config: MixtureConfig,
        tokenizer: "Tokenizer | None" = None,
        *,
        layers: range | None = None,
        embedding: bool | None = None,
        head: bool | None = None,
        linear: LinearFactory | None = None,
        dispatch: Dispatch | None = None,
        local: range | None = None,
        form: str | Callable[..., Tensor] = "auto",
        balance: Balance | None = None,
    ):
        def layer(config: MixtureConfig, index: int, linear: LinearFactory) -> Layer:
            if config.has_experts(index):
                return self.mixture_layer(config, index, linear, dispatch=dispatch, local=local, form=form)
            return self.dense_layer(config, index, linear)

        super().__init__(
            config, tokenizer, layers=layers, embedding=embedding, head=head, linear=linear, layer=layer
        )  # fmt: skip
        self.balance = Balance() if balance is None else balance

    @property
    def mixtures(self) -> dict[int, MixtureOfExperts]:
        """The mixtures of experts by their layers' numbers."""
        return {layer.index: layer.moe for layer in self.layers if isinstance(layer, MixtureLayer)}

    @property
    def is_whole(self) -> bool:
        """Whether all layers, both ends and all experts are here."""
        return super().is_whole and all(len(moe.local) == self.config.experts for moe in self.mixtures.values())

    def routed(
        self,
        tokens: Int[Tensor, "B T"] | Float[Tensor, "B T C"],
        backend: Backend | None = None,
        batch: Batch | None = None,
    ) -> tuple[Float[Tensor, "B T C"], dict[int, Routing]]:
        """What `hidden` returns, and where the tokens went in each layer with experts, by its number: rows of a
        `Routing` are the B · T tokens in order. Arguments and errors as for `hidden`."""
        self.check_arguments(tokens, batch, ())
        x, *around = self.begin(tokens, backend, batch)
        routings = {}
        for layer in self.layers:
            if isinstance(layer, MixtureLayer):
                x, routings[layer.index] = layer.routed(x, *around)
            else:
                x = layer(x, *around)
        return x if self.norm is None else self.norm(x), routings

    def training_step(self, tokens: Int[Tensor, "B T1"], backend: Backend) -> TrainingStep:
        """The next token's loss; the balance loss, summed over layers, where it has a weight; and loads, "moe.3" for
        layer 3."""
        x, routings = self.routed(tokens[:, :-1], backend)
        terms = {}
        if self.balance.alpha and routings:
            sequences = len(tokens) if self.balance.loss == "sequence" else 1
            losses = [balance_loss(routing, sequences=sequences) for routing in routings.values()]
            terms["balance"] = self.balance.alpha * torch.stack(losses).sum()
        loads = {f"moe.{i}": routing.loads for i, routing in routings.items()}
        return TrainingStep(token_loss(self.head(x), tokens[:, 1:]), terms, loads)

    def after_step(self, loads) -> None:
        """Move the routers' biases, where they have any and the rate is not 0."""
        if self.balance.rate:
            for i, moe in self.mixtures.items():
                moe.after_step(loads[f"moe.{i}"], self.balance.rate)
