"""What comes to a layer's router is what the model routes there."""

import torch

from llmsys.models import MixtureConfig, MixtureLlama
from llmsys.models.text.byte_tokenizer import byte_tokenizer
from llmsys.moe import RouterConfig, route_sigmoid
from llmsys.viz.mixture_of_experts import passing


def test_routing_what_passes_is_the_models_own_routing():
    config = MixtureConfig(
        "tiny", vocab_size=257, hidden_size=16, layers=2, heads=2, kv_heads=2, head_size=8, mlp_size=24,
        context_length=32, router=RouterConfig(6, 2, "sigmoid", bias=True), expert_size=8,
    )  # fmt: skip
    model = MixtureLlama(config, byte_tokenizer())
    batches = [torch.randint(0, 257, (3, 11), generator=torch.Generator().manual_seed(n)) for n in range(2)]
    batches[0][0, :5] = torch.tensor(list(b"def  "))
    found = passing(model, batches, 1)
    assert found[0][0].startswith("def") and len(found) == 2
    for tokens, (_, x) in zip(batches, found, strict=True):
        routing = model.routed(tokens)[1][1]
        again = route_sigmoid(x.flatten(0, 1) @ model.mixtures[1].router.weight.T, 2)
        assert x.shape == (3, 11, 16) and torch.equal(again.experts, routing.experts)
    assert not model.mixtures[1].router._forward_pre_hooks
