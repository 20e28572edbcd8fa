"""Latent attention as a paged cache asks for it: random ragged batches, with trees and without, against the definition;
what it refuses; how the kernel compiles for many query tokens."""

import inspect
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention.flash.tiles import TileConfig
from llmsys.attention.latent.decode import Kernels, latent_decode, tiles_for
from llmsys.attention.latent.paged import paged_latent_attention
from llmsys.attention.paged import paged_attention_reference
from llmsys.hardware.tier import triton_installed
from tests.attention.sample import sample
from tests.support.ragged import Ragged, Shape, ragged, shapes

if not triton_installed():
    pytest.skip("needs Triton", allow_module_level=True)

INTERPRETED = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU kernels are compiled")


def latents(shape: Shape, L: int, R: int, **options) -> Ragged:
    """A ragged batch whose values are the keys' first L columns."""
    batch = ragged(replace(shape, Hkv=1, Dk=L + R, Dv=L), **options)
    batch.value_pages = batch.key_pages[..., :L]
    batch.v = [k[..., :L] for k in batch.k]
    return batch


def attend(batch: Ragged):
    return paged_latent_attention(
        batch.q, batch.key_pages, batch.value_pages, **batch.step, scale=batch.q.shape[2] ** -0.5, return_lse=True
    )


@INTERPRETED
@settings(max_examples=25)
@given(
    shapes(longest=33, most=3), st.sampled_from([(1, 2), (8, 4), (16, 16), (17, 6)]), st.sampled_from([1, 2, 5]),
    st.sampled_from([(16, 16), (32, 16), (16, 32)]),
)  # fmt: skip
def test_any_ragged_batch_is_attended_by_the_definition(shape, size, programs, tiles):
    batch = latents(shape, *size)
    step = {name: value for name, value in batch.step.items() if name != "max_seq_len"}
    o, lse = latent_decode(
        batch.q, batch.key_pages[:, :, 0], latent=size[0], **step, scale=sum(size) ** -0.5, return_lse=True,
        tiles=TileConfig(*tiles, 4, 2), programs=programs,
    )  # fmt: skip
    expected, expected_lse = batch.expected()
    torch.testing.assert_close(o.double(), expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(lse.double(), expected_lse, atol=2e-5, rtol=1e-4)


@INTERPRETED
def test_deepseeks_sizes_in_one_mixed_step_of_a_chunk_a_prompt_and_decodes():
    batch = latents(Shape(((5, 37), (9, 9), (1, 40), (1, 1)), page=16, G=16, pad=2), 512, 64)
    o, lse = attend(batch)
    expected, expected_lse = batch.expected()
    torch.testing.assert_close(o.double(), expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(lse.double(), expected_lse, atol=2e-5, rtol=1e-4)


@INTERPRETED
def test_in_half_precision_the_error_is_at_most_twice_the_naive_ones():
    batch = latents(Shape(((3, 40), (1, 33)), page=16, G=4), 64, 16, dtype=torch.float16)
    exact = batch.expected()[0]
    naive = paged_attention_reference(batch.q, batch.key_pages, batch.value_pages, **batch.step)
    o, _ = attend(batch)
    assert (o - exact).abs().max() <= 2 * (naive - exact).abs().max() + 1e-4


@INTERPRETED
def test_pages_may_lie_apart_and_q_may_be_strided():
    batch = latents(Shape(((2, 19),), page=4, G=3), 8, 4)
    expected = attend(batch)[0]
    apart = torch.full((batch.key_pages.shape[0], 3, 4, 1, 16), float("nan"))
    apart[:, 1, :, :, :12] = batch.key_pages
    batch.key_pages = apart[:, 1, :, :, :12]
    batch.value_pages = batch.key_pages[..., :8]
    batch.q = batch.q.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(attend(batch)[0], expected)


def test_what_it_cannot_take_is_refused_in_words():
    batch = latents(Shape(((1, 5),)), 8, 4)
    q, pages, step = batch.q, batch.key_pages, batch.step

    def refused(match, q=q, key_pages=pages, value_pages=None, **options):
        values = key_pages[..., :8] if value_pages is None else value_pages
        with pytest.raises(ValueError, match=match):
            inspect.unwrap(paged_latent_attention)(q, key_pages, values, **step, **({"scale": 0.1} | options))

    refused(r"scale must be given.*1/√192", scale=None)
    refused("value_pages must be a view of key_pages' first L columns", value_pages=pages[..., :8].clone())
    refused("value_pages must be a view", value_pages=pages[..., 4:])
    refused("value_pages must be a view", value_pages=pages)
    refused("key_pages must have q's head size", q=q[..., :-1])
    refused("must have one head", key_pages=pages.expand(-1, -1, 1, -1).repeat(1, 1, 2, 1), q=q.repeat(1, 2, 1))
    wide = torch.zeros(2, 4, 1, 700)
    refused("at most 512", q=torch.zeros(1, 1, 700), key_pages=wide, value_pages=wide[..., :600])
    refused("float32, float16 or bfloat16", q=q.double(), key_pages=pages.double())


def test_it_compiles_for_hopper_and_smaller_gpus_and_spills_little(tmp_path):
    from llmsys.attention.latent.kernels import latent_kernel
    from llmsys.attention.latent.merge_kernel import merge_kernel
    from llmsys.hardware.compiler import Compiled, compile_kernels
    from llmsys.hardware.launches import Recorder
    from llmsys.hardware.occupancy import SMS

    def empty(*shape, dtype=torch.int32):
        return torch.empty(shape, dtype=dtype, device="meta")

    builds = []
    for Hq, T, target, tree, dtype in (
        (128, 64, "sm_90", False, torch.bfloat16),
        (16, 64, "sm_89", False, torch.bfloat16),
        *sample([(16, 1, "sm_90", True, torch.bfloat16), (16, 4, "sm_90", True, torch.bfloat16),
                 (16, 64, "sm_90", False, torch.float32)], 1),
    ):  # fmt: skip
        kernels = Kernels(Recorder(latent_kernel, target=target), Recorder(merge_kernel, target=target))
        latent_decode(
            empty(8 * T, Hq, 576, dtype=dtype), empty(100, 64, 576, dtype=dtype), latent=512,
            query_start_loc=empty(9), seq_lens=empty(8), block_table=empty(8, 64), max_query_len=T, scale=0.07,
            tree_mask=empty(8 * T, max(T, 2), dtype=torch.bool) if tree else None,
            tiles=tiles_for(Hq * T, 576, dtype.itemsize, tree, target)[0], kernels=kernels,
        )  # fmt: skip
        builds += [kernels.latent.builds[0]]
    for kernel in compile_kernels(builds, cache=tmp_path):
        assert isinstance(kernel, Compiled), str(kernel)
        assert kernel.spill_bytes <= 300 and not kernel.warnings, str(kernel)
        assert kernel.shared_bytes <= SMS[kernel.target].shared_bytes_per_program, str(kernel)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("Hq", "sequences", "trees"),
    [
        (16, [(1, 300)] * 9, ()),
        (128, [(70, 513), (1, 4096), (1, 1), (0, 0)], ()),
        (7, [(33, 33)], ()),
        (16, [(5, 300), (1, 40), (8, 8), (1, 2000)], (True, False, True, True)),
    ],
)
def test_on_a_gpu_with_deepseeks_sizes(Hq, sequences, trees):
    shape = Shape(tuple(sequences), page=64, G=Hq, pad=3, trees=trees)
    batch = latents(shape, 512, 64, dtype=torch.bfloat16, device="cuda")
    o, lse = attend(batch)
    expected, expected_lse = batch.expected()
    naive = paged_attention_reference(batch.q, batch.key_pages, batch.value_pages, **batch.step)
    assert (o - expected).abs().max() <= 2 * (naive - expected).abs().max() + 1e-3
    torch.testing.assert_close(lse.double(), expected_lse, atol=2e-2, rtol=1e-2)
