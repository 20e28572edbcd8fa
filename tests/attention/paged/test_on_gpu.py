"""The kernels over pages on a GPU: precision, large shapes, CUDA graphs whose lengths change, nothing waited for."""

import contextlib

import pytest
import torch

from llmsys.attention.head_norms import normalise
from llmsys.attention.paged import paged_attention, paged_attention_reference, write_pages
from llmsys.attention.rotary import rotate, rotation
from llmsys.bench.low_precision import eager_attention
from llmsys.cache import Chunk, Layout, PagedCache, batch_of
from llmsys.models import Llama, LlamaConfig, generate
from tests.support.ragged import Shape, ragged

pytestmark = pytest.mark.gpu
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
MIXED = ((1, 4000), (700, 1500), (0, 0), (1, 1), (5, 333), (257, 257), (1, 65), (40, 90))


@contextlib.contextmanager
def nothing_waits():
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def call(batch, **options):
    return paged_attention(batch.q, batch.key_pages, batch.value_pages, **batch.step, **options)


def eager_error(batch, exact) -> float:
    """The largest error of eager code in the same precision, sequence by sequence."""
    worst, start = 0.0, 0
    for (Tq, Tk), k, v in zip(batch.shape.sequences, batch.k, batch.v, strict=True):
        if Tq and Tk:
            rows = slice(start, start + Tq)
            q, k, v = (x.to(batch.q.dtype).transpose(0, 1)[None] for x in (batch.q[rows], k, v))
            o = eager_attention(q, k, v, causal=True)[0].transpose(0, 1)
            worst = max(worst, (o.double() - exact[rows]).abs().max().item())
        start += Tq
    return worst


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("D", "G", "Hkv", "page"), [(64, 3, 3, 16), (128, 4, 2, 64), (96, 1, 2, 16), (256, 8, 1, 256)])
@pytest.mark.parametrize("decodes", [False, True], ids=["mixed", "decodes"])
def test_large_batches_err_at_most_twice_as_much_as_eager_code(dtype, D, G, Hkv, page, decodes):
    sequences = tuple((min(Tq, 1), Tk) for Tq, Tk in MIXED) if decodes else MIXED
    batch = ragged(Shape(sequences, page, G, Hkv, D, D, pad=5), dtype=dtype, device="cuda")
    exact, exact_lse = batch.expected()
    o, lse = call(batch, return_lse=True)
    assert (o.double() - exact).abs().max() <= 2 * eager_error(batch, exact) + 2e-5
    torch.testing.assert_close(lse.double(), exact_lse, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("D", [64, 128])
def test_trees_and_values_of_another_size_are_right_in_half_precision(D):
    shape = Shape(((9, 900), (64, 64), (1, 70)), 16, 4, 2, D, 40, trees=(True, True, False))
    batch = ragged(shape, dtype=torch.bfloat16, device="cuda")
    exact, _ = batch.expected()
    torch.testing.assert_close(call(batch).double(), exact, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("B", [1, 3, 64, 150])
@pytest.mark.parametrize("length", [1, 127, 1024, 3001])
def test_decoding_is_right_however_the_keys_are_divided(B, length):
    sequences = tuple((1, max(length - 13 * i, 0)) for i in range(B))
    batch = ragged(Shape(sequences, 16, 4, 2, 64, 64), dtype=torch.bfloat16, device="cuda")
    expected = paged_attention_reference(
        batch.q.float(), batch.key_pages.float(), batch.value_pages.float(), **batch.step
    )  # fmt: skip
    torch.testing.assert_close(call(batch).float(), expected, atol=1e-2, rtol=1e-2)
    assert torch.equal(call(batch), call(batch))  # parts are added up in one order


def test_nothing_is_waited_for():
    batch = ragged(Shape(MIXED, 16, 3, 3, 64, 64), dtype=torch.bfloat16, device="cuda")
    call(batch)  # compiles
    with nothing_waits():
        call(batch)


@pytest.mark.parametrize("tokens", [1, 40], ids=["decodes", "mixed"])
def test_one_graph_serves_steps_of_other_lengths(tokens):
    """Captured with some lengths, replayed with others: what is on the GPU decides, the grid and the plan do not."""
    S, page, width = 6, 16, 64
    first = tuple((tokens, 100 + i) for i in range(S))
    others = [
        tuple((tokens, 900 - 100 * i) for i in range(S)),
        ((tokens, tokens), (0, 0), (tokens, 1000), (0, 0), (0, 7), (1, 1)),
        ((tokens * 3, tokens * 3), (1, 500), (0, 0), (1, 2), (1, 17), (0, 0)),
    ]
    N = S * tokens

    def made(sequences, seed):
        pad = N - sum(Tq for Tq, _ in sequences)
        shape = Shape(sequences, page, 3, 3, 64, 64, pad=pad)
        return ragged(shape, seed=seed, dtype=torch.bfloat16, device="cuda", width=width)

    batches = [made(sequences, i) for i, sequences in enumerate((first, *others))]
    blocks = max(len(batch.key_pages) for batch in batches)
    static = batches[0]
    keys, values = (torch.full((blocks, page, 3, 64), float("nan"), dtype=torch.bfloat16, device="cuda") for _ in "kv")
    q, step = static.q.clone(), {name: x.clone() if torch.is_tensor(x) else x for name, x in static.step.items()}

    def fill(batch):
        q.copy_(batch.q)
        for memory, pages in ((keys, batch.key_pages), (values, batch.value_pages)):
            memory.fill_(float("nan"))[: len(pages)].copy_(pages)
        for name in ("query_start_loc", "seq_lens", "block_table"):
            step[name].copy_(batch.step[name])

    fill(static)
    paged_attention(q, keys, values, **step)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = paged_attention(q, keys, values, **step)
    for batch in (*batches[1:], static):
        fill(batch)
        o.fill_(float("nan"))
        graph.replay()
        exact, _ = batch.expected()
        torch.testing.assert_close(o.double(), exact, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(("Hq", "H", "D"), [(9, 3, 64), (16, 8, 128)])
@pytest.mark.parametrize("normed", [False, True])
def test_writing_normalises_and_turns_as_the_plain_forms_do_and_waits_for_nothing(Hq, H, D, normed):
    N, page = 1000, 16
    q, k, v = (torch.randn(N, heads, D, device="cuda").bfloat16() for heads in (Hq, H, H))
    keys, values = (torch.full((80, page, H, D), float("nan"), device="cuda").bfloat16() for _ in "kv")
    slots = torch.randperm(80 * page, device="cuda")[:N].int()
    slots[::7] = -1
    turn = rotation(torch.randint(0, 4000, (N,), device="cuda"), D, dtype=torch.bfloat16)
    weights = {f"{name}_norm": torch.randn(D, device="cuda").bfloat16() for name in "qk"}
    norms = weights if normed else {}
    write_pages(k, v, keys, values, slots, q=q, turn=turn, **norms)
    keys.fill_(float("nan"))
    with nothing_waits():
        turned = write_pages(k, v, keys, values, slots, q=q, turn=turn, **norms)
    kept = slots >= 0
    at = slots[kept].long()

    def plain(x, weight, precision):
        x = x.to(precision)
        x = normalise(x, weight.to(precision), 1e-6) if normed else x
        return rotate(x.transpose(0, 1)[None], rotation_in(turn, precision))[0].transpose(0, 1).double()

    for got, x, weight, rows in (
        (turned, q, weights["q_norm"], slice(None)),
        (keys.flatten(0, 1)[at], k, weights["k_norm"], kept),
    ):
        exact, low = (plain(x, weight, precision)[rows] for precision in (torch.float32, torch.bfloat16))
        assert (got.double() - exact).abs().max() <= 2 * (low - exact).abs().max() + 2e-5
    assert torch.equal(values.flatten(0, 1)[at], v[kept])
    assert int((~values.isnan()).all(-1).all(-1).sum()) == int(kept.sum())


def rotation_in(turn, dtype):
    return type(turn)(turn.cos.to(dtype), turn.sin.to(dtype), turn.interleaved)


@pytest.fixture(scope="module")
def model() -> Llama:
    torch.manual_seed(0)
    config = LlamaConfig(
        name="small", vocab_size=97, hidden_size=256, layers=2, heads=6, kv_heads=2, head_size=64, mlp_size=384,
        context_length=512,
    )  # fmt: skip
    model = Llama(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.1 if weight.dim() == 2 else 1))
    return model.requires_grad_(False).cuda()


@pytest.mark.parametrize("block_size", [16, 64, 256])
def test_a_model_gives_the_tokens_of_the_one_that_keeps_nothing(model, block_size):
    prompt = [5, 11, 2, 90, 3]
    expected = generate(model, prompt, cache=False, max_new_tokens=24).tokens
    assert generate(model, prompt, attention="paged", max_new_tokens=24).tokens == expected
    cache = PagedCache(capacity=300, block_size=block_size)
    assert generate(model, prompt, attention=cache, max_new_tokens=24).tokens == expected


@torch.inference_mode()
def test_a_step_of_a_model_is_captured_and_replayed_with_other_chunks(model):
    layout = Layout(tokens=8, sequences=4, blocks=4, logits=4)
    cache = PagedCache(num_blocks=32, block_size=16)
    text = torch.randint(0, 97, (4, 60)).tolist()

    def step(counts, computed):
        chunks = [
            Chunk(text[i][computed[i] : computed[i] + n], computed[i], range(1 + 4 * i, 5 + 4 * i))
            for i, n in enumerate(counts) if n
        ]  # fmt: skip
        return batch_of(chunks, block_size=16, device="cuda", layout=layout)

    static = step([2, 2, 2, 2], [0, 0, 0, 0])
    model(static.tokens, cache, static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = model(static.tokens, cache, static)
    computed = [0, 0, 0, 0]
    for counts in ([2, 2, 2, 2], [8, 0, 0, 0], [1, 1, 1, 1], [0, 5, 1, 2], [1, 1, 1, 5]):
        static.buffer.copy_(step(counts, computed).buffer)
        graph.replay()
        computed = [a + b for a, b in zip(computed, counts, strict=True)]
        row = 0
        for i, n in enumerate(counts):
            if n:
                alone = model(torch.tensor([text[i][: computed[i]]], device="cuda"))[0, -1]
                torch.testing.assert_close(logits[0, row], alone, atol=2e-3, rtol=2e-3)
                row += 1
