"""Load statistics, and where experts are placed: the published example, limits that hold for any loads, refusals."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.moe.balance import load_statistics, pack, place_experts, replicas_of

# The example of EPLB's README: two layers of 12 experts, 16 physical ones, 4 groups, 2 nodes, 8 GPUs.
LOADS = torch.tensor(
    [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]]
)
PUBLISHED = [[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1], [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]]


def test_the_published_example_is_placed_as_published_and_its_busiest_gpus_are_known():
    placement = place_experts(LOADS, physical=16, gpus=8, nodes=2, groups=4)
    assert placement.expert_of.tolist() == PUBLISHED
    busiest = load_statistics(placement.gpu_loads(LOADS)).busiest
    assert [round(x, 3) for x in busiest.tolist()] == [1.208, 1.242]
    assert placement.gpu_loads(LOADS).sum(1).tolist() == pytest.approx(LOADS.sum(1).tolist())
    assert placement.node_loads(LOADS)[0].tolist() == pytest.approx([82.5 * 2 + 39 + 4 + 73 + 104 + 61, 1033 - 446])


def test_any_expert_anywhere_is_more_even_than_groups_that_stay_whole():
    free = place_experts(LOADS, physical=16, gpus=8)
    held = place_experts(LOADS, physical=16, gpus=8, nodes=2, groups=4)
    one, other = (load_statistics(each.gpu_loads(LOADS)).busiest for each in (free, held))
    assert (one < other).all()
    odd = place_experts(LOADS, physical=16, gpus=8, nodes=2, groups=3)  # three groups cannot be dealt to two nodes
    assert torch.equal(odd.expert_of, free.expert_of)


@settings(max_examples=60)
@given(
    layers=st.integers(0, 3), size=st.integers(1, 4), groups_a_node=st.integers(1, 3), nodes=st.integers(1, 3),
    gpus_a_node=st.integers(1, 4), spare=st.integers(0, 2), zeros=st.booleans(), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_every_expert_is_somewhere_every_gpu_is_full_and_groups_are_whole_on_a_node(
    layers, size, groups_a_node, nodes, gpus_a_node, spare, zeros, seed
):
    groups, gpus = groups_a_node * nodes, gpus_a_node * nodes
    E = groups * size
    a_gpu = -(-E // gpus) + spare
    loads = torch.randint(0, 3 if zeros else 1000, (layers, E), generator=torch.Generator().manual_seed(seed))
    placement = place_experts(loads, physical=a_gpu * gpus, gpus=gpus, nodes=nodes, groups=groups)
    assert placement.expert_of.shape == (layers, a_gpu * gpus)
    assert (placement.replicas >= 1).all() and (placement.replicas.sum(1) == a_gpu * gpus).all()
    torch.testing.assert_close(placement.gpu_loads(loads).sum(1), loads.sum(1).double())
    for layer, experts in enumerate(placement.expert_of.tolist()):
        for e in range(E):
            where = [p for p in placement.physical_of[layer, e].tolist() if p >= 0]
            assert where == [p for p, expert in enumerate(experts) if expert == e]
        if groups > 1:
            of_node = torch.tensor(experts).view(nodes, -1) // size
            homes = [set(of_node[n].tolist()) for n in range(nodes)]
            assert all(len(home) == groups_a_node for home in homes) and len(set().union(*homes)) == groups


@given(
    loads=st.lists(st.integers(0, 50), min_size=1, max_size=5), more=st.integers(0, 4)
)  # fmt: skip
def test_no_other_number_of_replicas_has_a_smaller_largest_load(loads, more):
    """Greedy is the best here, unlike in packing."""
    E = len(loads)

    def largest(counts):
        return max(load / n for load, n in zip(loads, counts, strict=True))

    replicas = replicas_of(loads, E + more)
    assert replicas[:E] == list(range(E))
    found = largest([replicas.count(e) for e in range(E)])
    others = itertools.combinations_with_replacement(range(E), more)
    assert found == min(largest([1 + extra.count(e) for e in range(E)]) for extra in others)


@given(weights=st.lists(st.floats(0, 100), min_size=1, max_size=6), bins=st.integers(1, 4))
def test_everything_is_packed_once_and_all_bins_get_as_many(weights, bins):
    weights = weights * bins
    filled = pack(weights, bins)
    assert sorted(itertools.chain(*filled)) == list(range(len(weights)))
    assert {len(each) for each in filled} == {len(weights) // bins}


def test_things_are_dealt_the_heaviest_first_to_the_lightest_bin_that_has_room():
    assert pack([1, 5, 4, 2], 2) == [[1, 0], [2, 3]]
    assert pack([9, 1, 1, 1], 2) == [[0, 3], [1, 2]]  # the second bin is lighter, and full
    assert pack([3.0, 3.0], 2) == [[0], [1]]


def test_statistics_of_even_skewed_and_missing_loads():
    found = load_statistics(torch.tensor([[2, 2, 2, 2], [8, 0, 0, 0], [0, 0, 0, 0], [1, 3, 0, 4]]))
    assert found.busiest.tolist() == [1, 4, 1, 2]
    assert found.busiest_share.tolist() == [0.25, 1, 0.25, 0.5]
    assert found.spread.tolist() == pytest.approx([0, 3**0.5, 0, 2.5**0.5 / 2])
    assert found.idle.tolist() == [0, 3, 4, 1]
    assert float(load_statistics(torch.tensor([5])).busiest) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: place_experts(LOADS[0], physical=16, gpus=8), r"loads must be \(layers, experts\), got \(12,\)"),
        (lambda: place_experts(LOADS, physical=8, gpus=8), "physical must be at least the 12 experts"),
        (lambda: place_experts(LOADS, physical=15, gpus=8), "physical must be a multiple of the 8 GPUs"),
        (lambda: place_experts(LOADS, physical=16, gpus=8, nodes=3), "gpus must be a multiple of the 3 nodes"),
        (lambda: place_experts(LOADS, physical=16, gpus=8, groups=5), "groups must divide the 12 experts"),
        (lambda: place_experts(LOADS, physical=16, gpus=0), "gpus must be at least 1, got 0"),
        (lambda: place_experts(-LOADS, physical=16, gpus=8), "loads must be at least 0"),
        (lambda: place_experts(LOADS * float("nan"), physical=16, gpus=8), "loads must be at least 0"),
        (lambda: load_statistics(torch.zeros(2, 0)), "for at least one expert"),
    ],
)
def test_refusals_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
