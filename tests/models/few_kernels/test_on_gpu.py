"""The few-kernel step on a GPU: its error, its graphs, and that it is the same to the last bit each time."""

import pytest
import torch

from llmsys.cache import PagedCache
from llmsys.models import Llama
from llmsys.models.few_kernels import FewKernelForward, takes
from tests.models.few_kernels.steps import Decoding, random_model

pytestmark = pytest.mark.gpu
BF16 = torch.bfloat16
SHAPES = {
    "qwen3": dict(hidden_size=1024, heads=16, kv_heads=8, head_size=128, mlp_size=3072, qk_norm=True, norm_eps=1e-6),
    "smollm2": dict(hidden_size=576, heads=9, kv_heads=3, head_size=64, mlp_size=1536, tied_embeddings=False),
}


@pytest.fixture(scope="module", params=SHAPES, ids=list(SHAPES))
def decoding(request) -> Decoding:
    model = random_model(SHAPES[request.param], vocab_size=1000, device="cuda", dtype=BF16)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.15 if weight.dim() == 2 else 1)
    return Decoding.of(model, [530, 1, 64, 1300], page=16)


def in_fp32(model: Llama) -> Llama:
    wide = Llama(model.config)
    wide.load_state_dict(model.state_dict())
    return wide.requires_grad_(False).cuda()


def copy_of(cache: PagedCache, model: Llama) -> PagedCache:
    """The same pages in the dtype of a model."""
    other = PagedCache(num_blocks=cache.num_blocks, block_size=cache.block_size, spec=model.cache_spec())
    for spec in model.cache_spec().layers:
        for a, b in zip(other.pages_of(spec, model.device), cache.pages_of(spec, model.device), strict=True):
            a.copy_(b)
    return other


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_it_errs_at_most_twice_as_much_as_the_plain_model(decoding, count):
    decoding = Decoding(decoding.model, decoding.tokens[:count], decoding.blocks[:count], 16)
    model, cache, batch = decoding.model, decoding.cache(), decoding.step()
    wide = in_fp32(model)
    exact = wide(batch.tokens, copy_of(cache, wide), batch)
    plain = model(batch.tokens, copy_of(cache, model), batch).float()
    got = FewKernelForward(model)(batch.tokens, cache, batch)
    assert got.dtype == BF16 and got.shape == exact.shape
    for i in range(count):
        error = (got[0, i].float() - exact[0, i]).norm()
        assert error <= 2 * (plain[0, i] - exact[0, i]).norm() + 1e-4 * exact[0, i].norm()


def test_a_step_is_the_same_to_the_last_bit_whenever_it_is_run_and_whoever_is_in_it(decoding):
    cache, batch = decoding.cache(), decoding.step()
    forward = FewKernelForward(decoding.model, most=4)
    first = forward(batch.tokens, cache, batch).clone()
    for _ in range(20):
        assert torch.equal(forward(batch.tokens, cache, batch), first)
    plain_launches = FewKernelForward(decoding.model, most=4, dependent=False)
    assert torch.equal(plain_launches(batch.tokens, cache, batch), first)


def test_a_graph_of_it_serves_other_tokens_lengths_and_fewer_sequences(decoding):
    model = decoding.model
    forward = FewKernelForward(model, most=4)
    cache, static = decoding.cache(), decoding.step()
    warm = copy_of(cache, model)
    forward(static.tokens, warm, static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = forward(static.tokens, cache, static)
    for count in (4, 3, 1):
        now = Decoding(model, [list(x) for x in decoding.tokens[:count]], decoding.blocks[:count], 16)
        own = now.cache()
        for spec in model.cache_spec().layers:
            for a, b in zip(cache.pages_of(spec, model.device), own.pages_of(spec, model.device), strict=True):
                a.zero_()
                a[: len(b)] = b
        for _ in range(4):
            step = now.step(rows=4)
            for name in ("tokens", "positions", "slot_mapping", "seq_lens", "logits_indices"):
                getattr(static, name).copy_(getattr(step, name))
            static.block_table.fill_(-1)[:, : step.block_table.shape[1]] = step.block_table
            graph.replay()
            exact = forward(step.tokens, own, step)
            assert torch.equal(logits[:, :count], exact[:, :count])
            now.append(exact)


def test_nothing_waits_for_the_gpu(decoding):
    cache, batch = decoding.cache(), decoding.step()
    forward = FewKernelForward(decoding.model)
    forward(batch.tokens, cache, batch)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward(batch.tokens, cache, batch)
        forward.hidden(batch.tokens, cache, batch)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_fp32_is_refused(decoding):
    assert takes(decoding.model)
    assert not takes(in_fp32(decoding.model))
