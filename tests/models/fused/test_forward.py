"""The fused forward is the model's: of any configuration, with any backend, whole or in parts, to the greedy token."""

from dataclasses import replace

import pytest
import torch

from llmsys.cache import Chunk, ContiguousCache, Layout, NoCache, PagedCache, batch_of
from llmsys.hardware.tier import interpreting, load_triton, triton_device, triton_installed
from llmsys.models import Llama, LlamaConfig, MixtureConfig, MixtureLlama
from llmsys.moe import RouterConfig

if not triton_installed():
    pytest.skip("needs Triton", allow_module_level=True)
load_triton()
from llmsys.models.fused import FusedForward  # noqa: E402
from tests.models.test_parts import Share, SumOfShares, part_of  # noqa: E402

DEVICE = triton_device()
if DEVICE.type == "cuda" and not torch.cuda.is_available():
    pytest.skip("Triton compiles in this process, and there is no GPU", allow_module_level=True)

CLOSE = dict(atol=2e-5, rtol=2e-5) if interpreting() else dict(atol=2e-3, rtol=2e-3)
"""Of logits of some units; on a GPU in fp32, whose products are summed in other orders."""
SMALL = LlamaConfig(
    name="small", vocab_size=61, hidden_size=24, layers=2, heads=4, kv_heads=2, head_size=8, mlp_size=20,
    context_length=64, tied_embeddings=False,
)  # fmt: skip
CONFIGS = {
    "plain": SMALL,
    "heads with norms, tied": replace(SMALL, qk_norm=True, tied_embeddings=True, norm_eps=1e-6),
    "a stretched context": replace(SMALL, rope_divisors=(1.0, 1.0, 2.0, 8.0), rope_base=500_000.0),
    "mixtures of experts": MixtureConfig(
        **vars(replace(SMALL, layers=3)), router=RouterConfig(5, 2), expert_size=8, dense_layers=(1,)
    ),
    "odd sizes": replace(SMALL, hidden_size=13, heads=3, kv_heads=1, head_size=10, mlp_size=7, qk_norm=True),
}


def model_of(config, dtype=torch.float32, **options) -> Llama:
    torch.manual_seed(3)
    model = (MixtureLlama if isinstance(config, MixtureConfig) else Llama)(config, **options)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.dim() == 2 else 1))
    return model.requires_grad_(False).to(DEVICE, dtype)


BACKENDS = {
    "none": lambda: NoCache(),
    "contiguous": lambda: ContiguousCache(capacity=16),
    "paged, in torch": lambda: PagedCache("torch", capacity=16, block_size=4),
    "paged": lambda: PagedCache("triton", capacity=16, block_size=4),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_its_logits_are_the_models(name, backend):
    model = model_of(CONFIGS[name])
    forward = FusedForward(model)
    tokens = torch.randint(0, 61, (2, 5), generator=torch.Generator().manual_seed(4)).to(DEVICE)
    ours, plain = BACKENDS[backend](), BACKENDS["contiguous"]()
    for step in tokens.split([5] if backend == "none" else [4, 1], dim=1):
        expected, got = model(step, plain), forward(step, ours)
        torch.testing.assert_close(got, expected, **CLOSE)
        assert torch.equal(got.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("name", ["plain", "odd sizes"])
def test_in_half_precision_it_errs_at_most_twice_as_much_as_the_model(name):
    exact = model_of(CONFIGS[name])
    half = model_of(CONFIGS[name], torch.float16)
    tokens = torch.randint(0, 61, (3, 6), generator=torch.Generator().manual_seed(5)).to(DEVICE)
    for weight, source in zip(exact.parameters(), half.parameters(), strict=True):
        weight.copy_(source)
    expected = exact(tokens)
    error = (FusedForward(half)(tokens).float() - expected).abs()
    plain = (half(tokens).float() - expected).abs()
    assert error.max() <= 2 * plain.max() + 1e-4 and error.mean() <= 2 * plain.mean() + 1e-5


def test_a_ragged_step_with_padding_has_the_logits_that_are_wanted():
    model = model_of(CONFIGS["heads with norms, tied"])
    chunks = [Chunk([5, 9, 2], 0, blocks=[3], logits=2), Chunk([7], 0, blocks=[1]), Chunk([8, 8], 0, blocks=[2])]
    layout = Layout(tokens=9, sequences=5, blocks=2, logits=6)
    batch = batch_of(chunks, block_size=4, device=DEVICE, layout=layout)
    found = []
    for forward in (model, FusedForward(model)):
        cache = PagedCache("triton", num_blocks=5, block_size=4, spec=model.cache_spec())
        found.append(forward(batch.tokens, cache, batch))
    assert found[1].shape == (1, 6, 61)
    torch.testing.assert_close(found[1][:, :4], found[0][:, :4], **CLOSE)


def test_taps_and_parts_are_the_models_and_what_is_given_to_a_part_is_not_changed():
    whole = model_of(replace(CONFIGS["plain"], layers=3))
    tokens = torch.randint(0, 61, (2, 3)).to(DEVICE)
    expected, entered = whole.hidden(tokens, taps=(0, 2, 3, 1))
    got, ours = FusedForward(whole).hidden(tokens, taps=(0, 2, 3, 1))
    torch.testing.assert_close((got, *ours), (expected, *entered), **CLOSE)
    x = tokens
    for layers in (range(0, 1), range(1, 1), range(1, 3)):
        part = part_of(whole, layers, embedding=layers.start == 0, head=layers.stop == 3).to(DEVICE)
        before = x.clone()
        y = FusedForward(part)(x)
        assert torch.equal(x, before)
        x = y
    torch.testing.assert_close(x, whole(tokens), **CLOSE)


def test_matrices_of_a_factory_are_called_as_they_are():
    """A rank's share of a layer: fewer heads, a narrower MLP, and modules that are no `Linear`."""
    whole = model_of(replace(CONFIGS["plain"], layers=1)).cpu()
    state = whole.state_dict()

    def linear(inputs, outputs, sections=None, *, name):
        made = Share(inputs, sections, 1, 2) if sections else SumOfShares(inputs, outputs, 1, 2)
        weight = state[f"{name}.weight"]
        made.weight.data = weight[made.rows] if sections else weight[:, made.columns]
        return made

    share = Llama(whole.config, layers=range(1), embedding=False, head=False, linear=linear)
    share = share.requires_grad_(False).to(DEVICE)
    x = torch.randn(2, 3, 24, device=DEVICE)
    torch.testing.assert_close(FusedForward(share)(x), share(x), **CLOSE)


def test_it_has_no_gradients_and_no_weights_of_its_own():
    model = model_of(CONFIGS["plain"]).requires_grad_(True)
    forward = FusedForward(model)
    tokens = torch.tensor([[1, 2, 3]], device=DEVICE)
    before = forward(tokens)
    assert not before.requires_grad
    with torch.no_grad():
        model.layers[1].down.weight.mul_(2)
        model.norm.weight.add_(1)
    torch.testing.assert_close(forward(tokens), model(tokens).detach(), **CLOSE)
    assert (forward(tokens) - before).abs().max() > 1e-2


def test_refusals_are_the_models_and_what_is_no_llama_is_refused_by_name():
    model = model_of(CONFIGS["plain"])
    with pytest.raises(ValueError, match="taps must be from 0 to 2, got 3"):
        FusedForward(model).hidden(torch.zeros(1, 2, dtype=torch.long), taps=[3])
    if interpreting():
        with pytest.raises(ValueError, match="tokens"):
            FusedForward(model)(torch.full((1, 2), 61))
    with pytest.raises(ValueError, match="model must be a Llama, its layers those of .* which is a Linear"):
        FusedForward(torch.nn.Linear(2, 2))
    model.norm = torch.nn.LayerNorm(24)
    with pytest.raises(ValueError, match="model must have norms that are RMSNorm, got LayerNorm"):
        FusedForward(model)


@pytest.mark.gpu
@pytest.mark.parametrize("qk_norm", [False, True])
@torch.inference_mode()
def test_on_a_gpu_a_decode_step_is_captured_and_errs_at_most_twice_as_much_as_the_models(qk_norm):
    config = LlamaConfig(
        name="middle", vocab_size=997, hidden_size=576, layers=3, heads=9, kv_heads=3, head_size=64, mlp_size=1536,
        context_length=512, qk_norm=qk_norm,
    )  # fmt: skip
    half = model_of(config, torch.bfloat16)
    with torch.no_grad():
        for weight in half.parameters():
            if weight.dim() == 2:
                weight.mul_(0.15)
    exact = model_of(config)
    for weight, source in zip(exact.parameters(), half.parameters(), strict=True):
        weight.copy_(source)
    text = torch.randint(0, 997, (5, 40), generator=torch.Generator().manual_seed(1)).tolist()
    forms = {"exact": exact, "plain": half, "fused": FusedForward(half)}
    caches = {name: PagedCache(num_blocks=32, block_size=16, spec=form.cache_spec() if name != "fused" else None)
              for name, form in forms.items()}  # fmt: skip

    def step(computed, n):
        chunks = [Chunk(text[i][computed : computed + n], computed, range(1 + 4 * i, 5 + 4 * i)) for i in range(5)]
        layout = Layout(tokens=n * 5, sequences=5, blocks=4, logits=5)
        return batch_of(chunks, block_size=16, device="cuda", layout=layout)

    prompt = step(0, 30)
    for name, form in forms.items():
        form(prompt.tokens, caches[name], prompt)
    static = step(30, 1)
    form, cache = forms["fused"], caches["fused"]
    form(static.tokens, cache, static)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = form(static.tokens, cache, static)
    for computed in range(30, 40):
        batch = step(computed, 1)
        static.buffer.copy_(batch.buffer)
        graph.replay()
        right = exact(batch.tokens, caches["exact"], batch)
        plain = half(batch.tokens, caches["plain"], batch)
        error, allowed = (logits.float() - right).abs(), (plain.float() - right).abs()
        assert error.mean() <= 2 * allowed.mean() + 1e-4 and error.max() <= 2 * allowed.max() + 1e-3
