"""What an operation of torch computes is counted, or the operation is named: it never passes for nothing."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from llmsys.attention import STAGES
from llmsys.hardware.meters import work

META, BF16, FP8 = torch.device("meta"), torch.bfloat16, torch.float8_e4m3fn


def counted(run, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with work() as done:
            run(*args)
    return done


def gradients(run, *shapes):
    """The work of the backward pass of run, whose arguments have these shapes and all want gradients."""
    out = run(*(torch.randn(shape, requires_grad=True) for shape in shapes))
    return counted(out.sum().backward)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("G", [1, 3])
def test_the_backward_pass_of_fused_attention_is_five_products(causal, G):
    shapes = (2, 2 * G, 48, 16), (2, 2, 48, 16), (2, 2, 48, 16)
    scores = 2 * 2 * G * 48 * 48
    q, k, v = (torch.randn(shape, requires_grad=True) for shape in shapes)
    with work() as forward:
        o = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=G > 1)
    assert "FlashAttention" in o.grad_fn.name(), "torch has another kernel here now"
    backward = counted(o.sum().backward)
    assert (forward.matmul_flops, forward.exponentials) == (4 * scores * 16, scores)
    assert backward.matmul_flops == 10 * scores * 16 and backward.exponentials == scores
    assert backward.other_flops >= 6 * scores and not backward.not_counted
    naive = gradients(lambda *x: STAGES["naive"](*x, causal=causal), *shapes)
    assert naive.matmul_flops == 8 * scores * 16, "nothing is made again where it was kept"


def test_where_torch_takes_attention_apart_its_parts_are_counted():
    mask = torch.randn(1, 1, 20, 20, requires_grad=True)  # a mask with a gradient: no fused kernel takes it
    done = gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), *[(1, 2, 20, 8)] * 3)
    assert done.matmul_flops == 8 * 2 * 20 * 20 * 8 and not done.not_counted


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("run", "shapes", "matmul", "other"),
    [
        (F.conv2d, [(2, 4, 9, 9), (6, 4, 3, 3)], 2 * 2 * 6 * 7 * 7 * 4 * 9, 0),
        (lambda x, w: F.conv2d(x, w, None, 2, 1, 1, groups=2), [(1, 4, 8, 8), (6, 2, 3, 3)], 2 * 6 * 16 * 2 * 9, 0),
        (F.conv1d, [(2, 3, 10), (5, 3, 4), (5,)], 2 * 2 * 5 * 7 * 3 * 4, 2 * 5 * 7),
        (lambda x, w: F.conv_transpose2d(x, w, stride=2), [(1, 4, 5, 5), (4, 6, 3, 3)], 2 * 4 * 25 * 6 * 9, 0),
        (torch.addmm, [(4, 5), (4, 6), (6, 5)], 2 * 4 * 5 * 6, 20),
        (torch.baddbmm, [(3, 4, 5), (3, 4, 6), (3, 6, 5)], 2 * 3 * 4 * 5 * 6, 60),
        (torch.addbmm, [(4, 5), (3, 4, 6), (3, 6, 5)], 2 * 3 * 4 * 5 * 6, 20),
        (torch.addmv, [(4,), (4, 6), (6,)], 2 * 4 * 6, 4),
        (F.linear, [(2, 3, 6), (5, 6), (5,)], 2 * 6 * 5 * 6, 30),
        (lambda x, y: torch.einsum("bij,bkj->bik", x, y), [(3, 4, 5), (3, 6, 5)], 2 * 3 * 4 * 6 * 5, 0),
        (torch.tensordot, [(3, 4, 5), (4, 5, 7)], 2 * 3 * 7 * 20, 0),
        (lambda *x: torch.linalg.multi_dot(x), [(4, 5), (5, 6), (6, 2)], 2 * 5 * 6 * 2 + 2 * 4 * 5 * 2, 0),
    ],
)
def test_products_are_counted_whatever_they_are_called(device, run, shapes, matmul, other):
    done = counted(run, *(torch.randn(shape, device=device) for shape in shapes))
    assert (done.matmul_flops, done.other_flops, done.not_counted) == (matmul, other, {})


def test_products_of_eight_bits_and_of_groups_are_counted():
    a, b = torch.empty(16, 32, device=META, dtype=FP8), torch.empty(48, 32, device=META, dtype=FP8).T
    scale = torch.ones((), device=META)
    assert counted(torch._scaled_mm, a, b, scale, scale).matmul_flops == 2 * 16 * 32 * 48
    ends = torch.empty(3, dtype=torch.int32, device=META)
    rows, each = torch.empty(40, 16, dtype=BF16, device=META), torch.empty(3, 16, 8, dtype=BF16, device=META)
    assert counted(torch._grouped_mm, rows, each, ends).matmul_flops == 2 * 40 * 16 * 8
    left, right = torch.empty(16, 40, dtype=BF16, device=META), torch.empty(40, 8, dtype=BF16, device=META)
    assert counted(torch._grouped_mm, left, right, ends).matmul_flops == 2 * 16 * 40 * 8, "groups divide the 40"


def test_backward_passes_of_products_are_twice_their_forward():
    for run, shapes in (
        (F.conv2d, [(2, 4, 9, 9), (6, 4, 3, 3)]), (F.conv_transpose2d, [(1, 4, 5, 5), (4, 6, 3, 3)]),
        (torch.matmul, [(2, 4, 5), (2, 5, 6)]), (F.linear, [(3, 6), (5, 6)]),
    ):  # fmt: skip
        forward = counted(run, *(torch.randn(shape) for shape in shapes))
        assert gradients(run, *shapes).matmul_flops == 2 * forward.matmul_flops
    x, w = torch.randn(2, 4, 9, 9), torch.randn(6, 4, 3, 3, requires_grad=True)
    assert counted(F.conv2d(x, w).sum().backward).matmul_flops == counted(F.conv2d, x, w.detach()).matmul_flops


def test_a_training_step_is_known_to_the_last_operation():
    from llmsys.models.llama import Llama, LlamaConfig

    model = Llama(LlamaConfig("small", 40, 16, 1, heads=2, kv_heads=1, head_size=8, mlp_size=24, context_length=9))
    tokens = torch.randint(40, (2, 9))
    optimiser = torch.optim.AdamW(model.parameters(), foreach=True)

    def step():
        logits = model(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    done = counted(step)
    assert done.not_counted == {} and done.matmul_flops and done.bytes_written


COMPUTES = [
    lambda x: torch.fft.rfft(x), lambda x: torch.cdist(x, x), lambda x: torch.linalg.solve(x, x), torch.linalg.svd,
    torch.linalg.inv, torch.linalg.qr, torch.linalg.det, lambda x: F.avg_pool2d(x[None, None], 2),
    lambda x: F.interpolate(x[None, None], scale_factor=2.0, mode="bilinear"), lambda x: F.group_norm(x[None], 2),
    lambda x: F.batch_norm(x, None, None, training=True), torch.nn.LSTM(8, 4), torch.nn.GRU(8, 4),
    lambda x: F.bilinear(x, x, x[None]), lambda x: torch.logcumsumexp(x, 0), lambda x: torch.addr(x, x[0], x[1]),
    lambda x: F.embedding_bag(torch.tensor([[0, 1]]), x),
    lambda x: F.ctc_loss(x[:, None].log_softmax(-1), torch.tensor([[1]]), [8], [1]),
    lambda x: torch.matrix_exp(x), lambda x: F.huber_loss(x, x * 2), lambda x: F.mse_loss(x, x + 1), torch.trapezoid,
    lambda x: torch._foreach_mul([x, x], 2.0), lambda x: torch._foreach_addcdiv([x], [x], [x]),
    lambda x: x.renorm(2, 0, 1.0),
    lambda x: x.index_add(0, torch.tensor([0, 0]), x[:2]), lambda x: x.scatter_add(0, torch.zeros(8, 8).long(), x),
    lambda x: x.index_put((torch.tensor([0, 0]),), x[:2], accumulate=True), F.softplus, torch.erf, torch.sin,
    lambda x: torch.sub(x, 1.0, out=torch.empty(8, 8)), lambda x: x.lerp(x, 0.5), lambda x: x.histc(4), torch.var_mean,
]  # fmt: skip


@pytest.mark.parametrize("run", COMPUTES, ids=range(len(COMPUTES)))
def test_whatever_computes_is_counted_or_named(run):
    x = torch.randn(8, 8)
    done = counted(run, x)
    assert done.matmul_flops + done.other_flops > 0 or done.not_counted


def test_what_only_moves_is_neither():
    x, i = torch.randn(8, 8), torch.tensor([1, 0])

    def run():
        torch.stack([x, x]), x.flip(0), x.roll(1), x.tril(), F.pad(x, (1, 1)), x.sort(), x.topk(2), x.repeat(2, 1)
        x[i], x.clone(), x.half(), x > 0, x.nonzero(), x.unique(), torch.eye(3), torch.rand(3), x.isnan().any()
        x.scatter(0, torch.zeros(1, 8).long(), x[:1]), x.unfold(0, 2, 1).contiguous(), torch.full((2,), 1.0), x.item

    done = counted(run)
    assert (done.matmul_flops, done.other_flops, done.not_counted) == (0, 0, {})


def test_an_operation_that_is_not_known_is_named_and_its_bytes_are_counted():
    x = torch.randn(8, 8)
    with pytest.warns(UserWarning, match=r"aten::_fft_r2c \(2×\)"), work() as done:
        torch.fft.rfft(x)
        torch.fft.rfft(x)
    assert done.not_counted == {"aten::_fft_r2c": 2} and done.bytes_read == 2 * x.nbytes
    assert "aten::_fft_r2c" in repr(done)


def test_somebody_s_own_operator_is_named():
    @torch.library.custom_op("llmsys_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x @ x

    assert counted(twice, torch.randn(3, 3)).not_counted == {"llmsys_tests::twice": 1}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("D", [64, 128])
def test_on_a_gpu_every_fused_attention_is_counted_alike(dtype, D):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    scores = 2 * 4 * 128 * 128
    fused = [SDPBackend.EFFICIENT_ATTENTION]
    if dtype == torch.bfloat16:
        fused += [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    for backend in fused:
        q, k, v = (torch.randn(2, 4, 128, D, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3))
        with sdpa_kernel(backend):
            with work() as forward:
                o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            backward = counted(o.sum().backward)
        assert (forward.matmul_flops, backward.matmul_flops) == (4 * scores * D, 10 * scores * D), backend
        assert not forward.not_counted and not backward.not_counted, backend
