"""MLA decode by the Triton kernel and the merge: the definition, what is refused, and what is compiled."""

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention.latent.decode import MANY_PARTS, Kernels, latent_decode, tiles_for
from llmsys.attention.paged import paged_attention_reference
from llmsys.hardware.compiler import Build, Compiled, compile_kernels
from llmsys.hardware.launches import Recorder
from llmsys.hardware.occupancy import SMS
from llmsys.hardware.tier import load_triton, triton_installed
from tests.attention.sample import examples, sample
from tests.support.ragged import Ragged, Shape, ragged

if not triton_installed():
    pytest.skip("needs Triton", allow_module_level=True)
load_triton()
from llmsys.attention.latent.kernels import latent_kernel  # noqa: E402
from llmsys.attention.latent.merge_kernel import merge_kernel  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALE = 192**-0.5


def batch_of(sequences, heads, latent, rope, page=4, pad=0, **options) -> Ragged:
    return ragged(Shape(sequences, page, heads, 1, latent + rope, latent, pad=pad), **{"device": DEVICE} | options)


def step_of(batch: Ragged, scale: float = SCALE) -> dict:
    names = ("query_start_loc", "seq_lens", "block_table")
    return {name: batch.step[name] for name in names} | {"scale": scale}


def call(batch: Ragged, scale: float = SCALE, **options):
    said = {"latent": batch.shape.Dv, "language": "triton"} | options
    return latent_decode(batch.q, batch.key_pages[:, :, 0], **step_of(batch, scale), **said)


def expected(batch: Ragged, scale: float = SCALE):
    pages = batch.key_pages[:, :, :1].double()
    return paged_attention_reference(
        batch.q.double(), pages, pages[..., : batch.shape.Dv], **step_of(batch, scale), return_lse=True
    )  # fmt: skip


def check(batch: Ragged, atol=1e-5, scale: float = SCALE, **options):
    (o, lse), (exact, exact_lse) = call(batch, scale, return_lse=True, **options), expected(batch, scale)
    assert o.dtype == batch.q.dtype and lse.dtype == torch.float32
    torch.testing.assert_close(o.double(), exact, atol=atol, rtol=atol)
    torch.testing.assert_close(lse.double(), exact_lse.double(), atol=atol, rtol=atol)


SEQUENCES = st.lists(
    st.tuples(st.sampled_from([0, 1, 1, 1, 2, 5]), st.sampled_from([0, 1, 2, 15, 16, 17, 40])), min_size=1, max_size=4
)


@settings(max_examples=examples(15), deadline=None)
@given(
    sequences=SEQUENCES, heads=st.sampled_from([1, 3, 16, 17, 128]), latent=st.sampled_from([1, 16, 17, 48]),
    rope=st.sampled_from([1, 8, 20]), page=st.sampled_from([1, 4, 5, 16]), pad=st.sampled_from([0, 3]),
    said=st.sampled_from([1, 2, 8]), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_results_agree_with_the_definition(sequences, heads, latent, rope, page, pad, said, seed):
    if sum(Tq for Tq, _ in sequences) + pad:
        batch = batch_of(tuple(sequences), heads, latent, rope, page, pad, seed=seed)
        check(batch, max_query_len=said)


def test_deepseeks_sizes_agree_with_the_definition_in_half_precision_too():
    sequences = ((1, 100), (2, 33), (0, 4), (1, 1))
    check(batch_of(sequences, 16, 512, 64, 16))
    check(batch_of(sequences, 16, 512, 64, 16, dtype=torch.float16), atol=4e-3)


def test_one_long_sequence_is_added_up_from_all_parts():
    check(batch_of(((1, 700), (3, 2)), 3, 16, 8, 16))


@dataclass(frozen=True)
class Merge:
    """The merge kernel with other sizes than those that it is launched with."""

    block_m: int
    parts: int

    def __getitem__(self, grid):
        def launch(*arguments, BLOCK_M, PARTS, ROWS, **options):
            merge_kernel[(grid[0], -(-ROWS // self.block_m))](
                *arguments, BLOCK_M=self.block_m, PARTS=self.parts, ROWS=ROWS, **options
            )

        return launch


@pytest.mark.parametrize("merge", [Merge(1, 8), Merge(4, 2), Merge(16, 1)])
def test_the_merge_takes_any_number_of_rows_and_parts_at_a_time(merge):
    batch = batch_of(((1, 200), (3, 2), (1, 30)), 3, 16, 8, 16, pad=2)
    check(batch, kernels=Kernels(latent_kernel, merge))


@pytest.mark.parametrize("scale", [1e-3, 40.0])
def test_weights_may_be_nearly_equal_or_nearly_one_and_zeros(scale):
    batch = batch_of(((1, 90), (2, 50)), 5, 32, 8)
    batch.q.mul_(100)
    check(batch, scale=scale, atol=1e-4)


def test_queries_and_pages_with_gaps_are_read_where_they_lie():
    batch = batch_of(((1, 30), (2, 9)), 4, 16, 8)
    plain = call(batch)
    pages = torch.full((len(batch.key_pages), 7, 40), float("nan"), device=DEVICE)
    pages[:, :4, :24] = batch.key_pages[:, :, 0]
    q = torch.full((3, 4, 48), float("nan"), device=DEVICE)[..., ::2].copy_(batch.q)
    found = latent_decode(q, pages[:, :4, :24], latent=16, **step_of(batch), language="triton")
    assert torch.equal(found, plain)


def test_the_same_call_gives_the_same_bits_and_other_numbers_of_the_same_shape_others():
    a, b = (batch_of(((1, 80), (1, 3)), 5, 16, 8, seed=seed) for seed in (1, 2))
    first, other = call(a), call(b)
    assert torch.equal(first, call(a)) and not torch.equal(first, other)
    check(b)


@pytest.mark.parametrize("sequences", [(), ((0, 5), (0, 0))])
def test_a_step_without_tokens_gives_nothing_and_one_of_padding_zeros(sequences):
    for pad in (0, 2):
        shape = Shape(sequences or ((0, 0),), 4, 3, 1, 24, 16, pad=pad)
        batch = ragged(shape, device=DEVICE)
        o, lse = call(batch, return_lse=True)
        assert o.shape == (pad, 3, 16) and not o.any() and (lse == float("-inf")).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(latent=24), "latent must be 1 to 512 of q's 24 columns, and leave"),
        (dict(latent=0), "latent must be 1 to 512"),
        (dict(scale=0.0), "scale must be a positive number"),
        (dict(scale=float("nan")), "scale must be a positive number"),
        (dict(language="cuda"), 'language must be "auto", "triton" or "gluon", got'),
        (dict(language="gluon"), "language .* for Hopper GPUs"),
        (dict(q=torch.zeros(3, 24)), r"q must be a torch.Tensor \(N, Hq, Dk\), got shape"),
        (dict(q=torch.zeros(3, 4, 24).double()), "q must be float32, float16 or bfloat16"),
        (dict(pages=torch.zeros(9, 4, 23)), "pages must have slots of q's 24 columns, latent and rotated key, got 23"),
        (dict(pages=torch.zeros(9, 4, 24).half()), "pages must be torch.float32 on .* as q"),
        (dict(pages=torch.zeros(0, 4, 24)), "pages must have a block and a slot at least"),
        (dict(pages=torch.zeros(9, 4, 48)[..., ::2]), "pages must have .* side by side"),
        (dict(pages=None), r"pages must be a torch.Tensor \(num_blocks, block_size, Dk\), got NoneType"),
        (dict(seq_lens=torch.tensor([30, 9])), "seq_lens must be int32"),
        (dict(block_table=torch.zeros(1, 8, dtype=torch.int32)), "block_table must have a row for each"),
        (dict(block_table=torch.zeros(2, 1, dtype=torch.int32).expand(2, 2**32)), "block_table must be for fewer keys"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(changes, message):
    batch = batch_of(((1, 30), (2, 9)), 4, 16, 8, device="cpu")
    arguments = {"q": batch.q, "pages": batch.key_pages[:, :, 0], "latent": 16, "language": "triton"} | step_of(batch)
    arguments |= changes
    with pytest.raises(ValueError, match=message):
        latent_decode(arguments.pop("q"), arguments.pop("pages"), **arguments)


# Compiled for GPUs that need not be here


def builds(
    heads, tokens=1, dtype=torch.bfloat16, sizes=(512, 64), page=64, target="sm_90", sequences=32
) -> tuple[Build, Build]:
    """What a launch for so many sequences would compile: the kernel and the merge."""
    recorders = Kernels(*(Recorder(kernel, target=target) for kernel in (latent_kernel, merge_kernel)))

    def empty(*shape, dtype=torch.int32):
        return torch.empty(shape, dtype=dtype, device="meta")

    latent_decode(
        empty(sequences * tokens, heads, sum(sizes), dtype=dtype), empty(100, page, sum(sizes), dtype=dtype),
        latent=sizes[0], query_start_loc=empty(sequences + 1), seq_lens=empty(sequences),
        block_table=empty(sequences, 64), max_query_len=tokens, scale=SCALE,
        tiles=tiles_for(heads * tokens, sum(sizes), dtype.itemsize, False, target)[0], programs=264, kernels=recorders,
    )  # fmt: skip
    merge, early = recorders.merge.builds[0], int(target.removeprefix("sm_")) >= 90
    return recorders.latent.builds[0], replace(merge, constants=merge.constants | {"EARLY": early})


def test_compiled_for_hopper_the_kernel_uses_tensor_cores_fits_as_often_as_given_and_spills_nothing(tmp_path):
    cases = sample(itertools.product((1, 16, 32, 64, 128), (1, 2), (16, 64)), 1, always=[(16, 1, 64)])
    kernels = compile_kernels([build for case in cases for build in builds(*case[:2], page=case[2])], cache=tmp_path)
    for (heads, tokens, page), latent, merge in zip(cases, kernels[::2], kernels[1::2], strict=True):
        what = f"{heads} heads × {tokens}, page {page}: {latent}, {merge}"
        assert isinstance(latent, Compiled) and isinstance(merge, Compiled), what
        assert latent.wgmma or "mma.sync" in latent.ptx, what
        # With 64 rows o takes half of all registers. These few bytes were faster than smaller tiles.
        assert latent.spill_bytes <= (300 if heads * tokens > 32 else 0) and merge.spill_bytes == 0, what
        assert not latent.warnings, what
        assert latent.occupancy().programs >= tiles_for(heads * tokens, 576, 2, False, "sm_90")[1], what
        assert merge.occupancy().programs >= 4, what
        assert "griddepcontrol.wait" in merge.ptx, what


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_the_merge_of_one_sequences_many_parts_spills_nothing(tmp_path, target):
    _, merge = builds(16, target=target, sequences=1)
    assert merge.constants["PARTS"] == MANY_PARTS > builds(16)[1].constants["PARTS"]
    (kernel,) = compile_kernels([merge], cache=tmp_path)
    assert isinstance(kernel, Compiled) and kernel.spill_bytes == 0, kernel


def test_other_gpus_and_float32_have_shared_memory_for_their_tiles(tmp_path):
    bf16, fp32 = torch.bfloat16, torch.float32
    cases = sample(
        [(16, 64, bf16, "sm_89"), (16, 64, fp32, "sm_90"), (128, 64, fp32, "sm_89"), (32, 128, bf16, "sm_80")], 1,
        always=[(128, 64, bf16, "sm_80"), (128, 128, bf16, "sm_100")],
    )  # fmt: skip
    wanted = [builds(heads, dtype=dtype, sizes=(512, R), target=target)[0] for heads, R, dtype, target in cases]
    kernels = compile_kernels(wanted, cache=tmp_path)
    for case, kernel in zip(cases, kernels, strict=True):
        assert isinstance(kernel, Compiled), kernel
        assert kernel.shared_bytes <= SMS[kernel.target].shared_bytes_per_program, (case, str(kernel))


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "worst"), [(torch.float32, 2e-4), (torch.float16, 4e-3), (torch.bfloat16, 1.6e-2)])
@pytest.mark.parametrize(("heads", "latent", "rope"), [(16, 512, 64), (128, 512, 64), (5, 48, 16)])
def test_large_batches_are_right_in_every_precision(dtype, worst, heads, latent, rope):
    sequences = ((1, 4000), (2, 1500), (0, 0), (1, 1), (3, 333), (1, 65))
    check(batch_of(sequences, heads, latent, rope, 64, 3, dtype=dtype), atol=worst)


@pytest.mark.gpu
@pytest.mark.parametrize("language", ["auto", "triton"])
def test_nothing_is_waited_for(language):
    batch = batch_of(((1, 300), (1, 5)), 16, 512, 64, 64, dtype=torch.bfloat16)
    call(batch, language=language)  # compiles
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(batch, language=language)
    finally:
        torch.cuda.set_sync_debug_mode(before)
