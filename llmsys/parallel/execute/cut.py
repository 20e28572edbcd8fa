"""A cut: which layers are in which stage, by what they cost; and the stages made of a model's weights.

SmolLM2's head, 576 × 49,152, costs as much as eight of its layers. So four stages of its 30 layers are not 8, 8, 7 and
7, and in eight stages the head has one layer beside it, or none of the others can keep up.

A model with tied embeddings has one matrix at both ends. Where these are in two stages each has a copy, and the copies
stay equal if they begin so, get the sum of both gradients and are moved alike (`llmsys.parallel.execute.copies`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llmsys.cache import Backend
from llmsys.models.checkpoints.weights import class_of, load_model
from llmsys.models.llama import Llama, LlamaConfig
from llmsys.parallel.execute.put_off import PutOff, SplitBackward, split_backward
from llmsys.parallel.execute.stage import Key, Stage
from llmsys.parallel.pipeline import Kind, Schedule, split_layers


@dataclass(frozen=True)
class Cut:
    """`ranges[stage]` are the layers of a stage; the first has the embedding, too, and the last the head.

    Raises ValueError where these are not all layers, each once and in order.
    """

    config: LlamaConfig
    ranges: tuple[range, ...]

    def __post_init__(self):
        if [layer for each in self.ranges for layer in each] != list(range(self.config.layers)) or not all(self.ranges):
            raise ValueError(
                f"ranges must be the model's {self.config.layers} layers in order, at least one a stage; got "
                f"{self.ranges}"
            )

    @classmethod
    def by_cost(cls, config: LlamaConfig, num_stages: int, context: int) -> "Cut":
        """The cut whose slowest stage is the fastest, for sequences of `context` tokens.

        Raises ValueError where there are more stages than layers.
        """
        layer, head = costs(config, context)
        return cls(config, split_layers([layer] * config.layers, num_stages, after=head))

    @property
    def num_stages(self) -> int:
        return len(self.ranges)

    def shapes(self, stage: int) -> dict[str, torch.Size]:
        """The weights of a stage, by their names there."""
        return {name: weight.shape for name, weight in self.empty(stage).named_parameters()}

    def empty(self, stage: int, later: PutOff | None = None) -> Llama:
        """A stage's part of the model without numbers, on the meta device."""
        with torch.device("meta"):
            return Llama(self.config, layers=self.ranges[stage], linear=later)

    def whole_name(self, name: str) -> str:
        """What the whole model calls a stage's weight: a tied head is the embedding."""
        return "embedding.weight" if self.config.tied_embeddings and name == "head.weight" else name

    def stage(
        self,
        stage: int,
        weights: Mapping[str, Tensor],
        *,
        split: bool = True,
        backward: SplitBackward = split_backward,
        attention: str | Callable | Backend = "sdpa",
    ) -> Stage:
        """A stage with copies of the whole model's `weights` of it, by name; ready to be trained.

        `backward` is how a matrix's backward pass is split. `split=False` makes I a whole one, and W empty. The first
        stage is never split: nobody waits for its I.
        """
        later = PutOff(backward) if split and stage > 0 else None
        part = self.empty(stage, later)
        own = {name: weights[self.whole_name(name)].detach().clone() for name, _ in part.named_parameters()}
        part.load_state_dict(own, assign=True, strict=False)
        part.tie()
        return Stage(part.requires_grad_(True).train(), later, attention)


def costs(config: LlamaConfig, context: int) -> tuple[float, float]:
    """The multiplications that a token of a sequence of `context` costs in a layer, with attention to half of the
    sequence, and in the head. The embedding is looked up, and the norms are small: both count as nothing."""
    C, heads = config.hidden_size, config.heads * config.head_size
    qkv = C * (config.heads + 2 * config.kv_heads) * config.head_size
    layer = qkv + heads * C + 3 * C * config.mlp_size + 2 * heads * context / 2
    return layer, float(C * config.vocab_size)


def check_model(model: torch.nn.Module) -> None:
    """ValueError for a model that is a part of one, or whose training needs more than the next token's loss."""
    if not isinstance(model, Llama) or not model.is_whole:
        raise ValueError("model must be a whole one of the Llama family to be cut into stages")
    check_class(type(model))


def check_class(model_class: type) -> None:
    """The same, of a model that is not there yet."""
    if hasattr(model_class, "training_step"):
        raise ValueError(
            "model must be trained by the next token's loss alone to be cut into stages, and a "
            f"{model_class.__name__} adds terms of its own to the loss: train it without a pipeline"
        )


def check_cut(cut: Cut, schedule: Schedule) -> None:
    """ValueError where a cut has another number of stages than the schedule."""
    if cut.num_stages != schedule.num_stages:
        raise ValueError(
            f"cut must have the {schedule.num_stages} stages of {schedule.name} on {schedule.num_ranks} ranks, and has "
            f"{cut.num_stages}"
        )


def stages_of(
    model: Llama,
    schedule: Schedule,
    cut: Cut,
    rank: int | None = None,
    *,
    split: bool | None = None,
    backward: SplitBackward = split_backward,
    attention: str | Callable | Backend = "sdpa",
) -> dict[Key, Stage]:
    """The stages of a rank, or of all, by (replica, stage), with copies of the model's weights.

    Backward passes are split (`split`) in those stages where the schedule has an I or a W of its own; where each is a
    whole B, splitting would only cost. True or False says it for all of them, but for the first stage, which is never
    split. `backward` is how one of a matrix is split.

    Raises ValueError where the model cannot be cut, or not like that.
    """
    check_model(model)
    if model.config != cut.config or cut.num_stages != schedule.num_stages:
        raise ValueError(
            f"cut must be of this model into the {schedule.num_stages} stages of {schedule.name}, and is of "
            f"{cut.config.name} into {cut.num_stages}"
        )
    weights = dict(model.named_parameters())
    ranks = range(schedule.num_ranks) if rank is None else [rank]
    keys = [key for each in ranks for key in schedule.placement.stages(each)]
    parted = split_stages(schedule) if split is None else set(keys) if split else set()
    return {
        key: cut.stage(key[1], weights, split=key in parted, backward=backward, attention=attention) for key in keys
    }


def split_stages(schedule: Schedule) -> set[Key]:
    """The stages, by (replica, stage), where the schedule does an I or a W by itself, and somebody waits for I."""
    halves = (half for _, _, action in schedule.actions() for half in action.halves)
    return {(each.replica, each.stage) for each in halves if each.kind in (Kind.I, Kind.W) and each.stage > 0}


def load_stages(
    source: str | Path | None,
    schedule: Schedule,
    cut: Cut,
    rank: int,
    *,
    device: str | torch.device = "cpu",
    backward: SplitBackward = split_backward,
    attention: str | Callable | Backend = "sdpa",
) -> dict[Key, Stage]:
    """The stages of a rank from a checkpoint (`llmsys.models.load_model`), of which it reads no other weights.
    `backward` is how a matrix's backward pass is split, where the schedule has an I or a W of its own.

    Raises what `load_model` does, and ValueError where the model cannot be cut, or not like that.
    """
    check_cut(cut, schedule)
    check_class(class_of(cut.config))
    stages, parted = {}, split_stages(schedule)
    for replica, stage in schedule.placement.stages(rank):
        later = PutOff(backward) if (replica, stage) in parted else None
        part = load_model(source, device=device, layers=cut.ranges[stage], linear=later)
        if part.config != cut.config:
            raise ValueError(f"cut must be of the checkpoint's {part.config.name}, and is of {cut.config.name}")
        stages[replica, stage] = Stage(part.requires_grad_(True).train(), later, attention)
    return stages
