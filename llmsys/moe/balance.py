"""Where experts lie: what their loads say, and on which GPU each of them is put, some of them twice.

With expert parallelism every GPU has some experts, and all wait for the busiest. Loads differ between experts by much
and for long, so a placement can be computed from yesterday's. It has two means:

- *replicas*: the experts that work most are there more than once, and share their tokens. Of the physical experts that
  there is memory for, each expert has one; those left over go, one by one, to whatever expert has the most load a
  replica by then (`replicas_of`).
- *packing*: the physical experts are dealt to GPUs, the heaviest first, each to the GPU that has the least so far and
  is not full yet: all GPUs have the same number of experts (`pack`).

`place_experts` does this for all GPUs as one (*global*), or, where a router keeps a token to few groups of experts, so
that its copies cross to few nodes, in three steps (*hierarchical*): groups are packed into nodes, whole; then, in each
node, its experts get their replicas, which are packed into its GPUs.

This is the method of EPLB, which DeepSeek published for its models (https://github.com/deepseek-ai/EPLB;
https://arxiv.org/abs/2412.19437, section 3.4). Written here in plain loops over numbers: it runs on the host, once in
minutes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class LoadStatistics:
    """How even loads are; each field (…), a number for each row of loads (…, E)."""

    busiest: Float[Tensor, "..."]
    """The largest load by the mean: 1 where all are even, E where one expert has all. Who waits, waits for it."""
    busiest_share: Float[Tensor, "..."]
    """The largest load by the sum."""
    spread: Float[Tensor, "..."]
    """Standard deviation by the mean: 0 where all are even."""
    idle: Int[Tensor, "..."]
    """Experts without a token."""


def load_statistics(loads: Shaped[Tensor, "*rows E"]) -> LoadStatistics:
    """What the loads of E experts, or of E GPUs, are like. A row without a token counts as even.

    Raises ValueError where a load is below 0, or there are none.
    """
    _check_loads(loads)
    loads = loads.double()
    E, total, largest = loads.shape[-1], loads.sum(-1), loads.amax(-1)
    none = total == 0
    mean = torch.where(none, 1.0, total / E)
    busiest = torch.where(none, 1.0, largest / mean)
    return LoadStatistics(busiest, busiest / E, loads.std(-1, correction=0) / mean, (loads == 0).sum(-1))


@dataclass(frozen=True)
class Placement:
    """Which expert each physical expert is, for each of L layers. GPU g has those from g · P/gpus on, P/gpus of them;
    nodes have consecutive GPUs."""

    expert_of: Int[Tensor, "L P"]
    """The expert that a physical expert is a replica of."""
    gpus: int
    nodes: int
    experts: int  # E

    @property
    def replicas(self) -> Int[Tensor, "L E"]:
        """How often each expert is there, once at least."""
        L = len(self.expert_of)
        counts = torch.zeros(L, self.experts, dtype=torch.int64)
        return counts.scatter_add_(1, self.expert_of, torch.ones_like(self.expert_of))

    @property
    def physical_of(self) -> Int[Tensor, "L E most"]:
        """The physical experts that are replicas of each expert, in order; −1 behind them, where others have more."""
        found = torch.full((len(self.expert_of), self.experts, int(self.replicas.max())), -1)
        seen = torch.zeros(len(self.expert_of), self.experts, dtype=torch.int64)
        for layer, experts in enumerate(self.expert_of.tolist()):
            for physical, expert in enumerate(experts):
                found[layer, expert, seen[layer, expert]] = physical
                seen[layer, expert] += 1
        return found

    def gpu_loads(self, loads: Shaped[Tensor, "L E"]) -> Float[Tensor, "L gpus"]:
        """What each GPU has to do, where an expert's replicas share its load evenly."""
        of_replica = loads.double() / self.replicas
        return of_replica.gather(1, self.expert_of).unflatten(1, (self.gpus, -1)).sum(-1)

    def node_loads(self, loads: Shaped[Tensor, "L E"]) -> Float[Tensor, "L nodes"]:
        """The same by node."""
        return self.gpu_loads(loads).unflatten(1, (self.nodes, -1)).sum(-1)


def place_experts(
    loads: Shaped[Tensor, "..."], *, physical: int, gpus: int, nodes: int = 1, groups: int = 1
) -> Placement:
    """Place experts on GPUs by the loads that they had.

    Parameters
    ----------
    loads
        (L, E): tokens of each expert of each layer, or anything in proportion. They are read on the host.
    physical
        How many experts, replicas counted, there is memory for in a layer, on all GPUs together.
    groups, nodes
        Where the groups can be dealt to the nodes evenly, a group stays whole on one node, and balance is sought
        inside nodes (hierarchical). Else, and with one group, any expert may be anywhere (global).

    Raises
    ------
    ValueError
        There is no room for each expert, or something does not divide; the message says what.
    """
    if loads.dim() != 2:
        raise ValueError(f"loads must be (layers, experts), got {tuple(loads.shape)}")
    _check_loads(loads)
    L, E = loads.shape
    for name, n in (("physical", physical), ("gpus", gpus), ("nodes", nodes), ("groups", groups)):
        if n < 1:
            raise ValueError(f"{name} must be at least 1, got {n}")
    if physical < E:
        raise ValueError(f"physical must be at least the {E} experts, each of which is somewhere, got {physical}")
    if physical % gpus:
        raise ValueError(f"physical must be a multiple of the {gpus} GPUs, which have as many each, got {physical}")
    if gpus % nodes:
        raise ValueError(f"gpus must be a multiple of the {nodes} nodes, which have as many each, got {gpus}")
    if E % groups:
        raise ValueError(f"groups must divide the {E} experts into equal parts, got {groups}")
    if groups == 1 or groups % nodes:
        parts, of = 1, 1
    else:
        parts, of = nodes, groups
    placed = [_place_layer(row, physical, gpus, parts, of) for row in loads.double().tolist()]
    return Placement(torch.tensor(placed, dtype=torch.int64).view(L, physical), gpus, nodes, E)


def replicas_of(loads: Sequence[int | float], physical: int) -> list[int]:
    """The expert of each of `physical` replicas: every expert once, then, one by one, whichever has the largest load a
    replica. Of several that have it, the first."""
    replicas, counts = list(range(len(loads))), [1] * len(loads)
    while len(replicas) < physical:
        replicas.append(max(range(len(loads)), key=lambda e: loads[e] / counts[e]))
        counts[replicas[-1]] += 1
    return replicas


def pack(weights: Sequence[int | float], bins: int) -> list[list[int]]:
    """Deal things to bins, as many to each, so that the bins weigh about the same. Returns the things of each bin.

    The heaviest comes first, into the lightest bin that is not full; of equals, the first. (Never far from the best:
    to find that is a problem for which no fast way is known.)
    """
    room = len(weights) // bins
    filled, weight = [[] for _ in range(bins)], [0.0] * bins
    for thing in sorted(range(len(weights)), key=lambda i: -weights[i]):
        lightest = min((b for b in range(bins) if len(filled[b]) < room), key=lambda b: weight[b])
        filled[lightest].append(thing)
        weight[lightest] += weights[thing]
    return filled


def _place_layer(loads: list[float], physical: int, gpus: int, nodes: int, groups: int) -> list[int]:
    """The expert of each physical expert: groups into nodes, replicas in each node, replicas into its GPUs."""
    size = len(loads) // groups
    of_groups = [sum(loads[g * size : (g + 1) * size]) for g in range(groups)]
    placed = []
    for of_node in pack(of_groups, nodes):
        experts = [g * size + i for g in of_node for i in range(size)]
        replicas = replicas_of([loads[e] for e in experts], physical // nodes)  # by their places in the node
        each = [loads[experts[i]] / replicas.count(i) for i in replicas]
        for of_gpu in pack(each, gpus // nodes):
            placed += [experts[replicas[r]] for r in of_gpu]
    return placed


def _check_loads(loads: Tensor) -> None:
    if loads.dim() < 1 or loads.shape[-1] == 0:
        raise ValueError(f"loads must be (…, E), for at least one expert, got {tuple(loads.shape)}")
    if not (loads >= 0).all():
        raise ValueError("loads must be at least 0: how many tokens each expert was given")
