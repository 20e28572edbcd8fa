"""The kernels over pages, compiled for GPUs that need not be here: tensor cores, copies on the way, no spills."""

import itertools

import pytest
import torch

from llmsys.attention.paged.forward import Kernels, paged_attention
from llmsys.attention.paged.plans import plan_for
from llmsys.attention.paged.write import write_pages
from llmsys.attention.rotary import Rotation
from llmsys.hardware.compiler import Build, Compiled, compile_kernels
from llmsys.hardware.launches import Recorder
from llmsys.hardware.occupancy import SMS
from llmsys.hardware.tier import triton_installed
from tests.attention.sample import sample

if not triton_installed():
    pytest.skip("needs Triton", allow_module_level=True)
from llmsys.attention.paged.ragged_kernel import ragged_kernel  # noqa: E402
from llmsys.attention.paged.split_kernels import merge_kernel, split_kernel  # noqa: E402
from llmsys.attention.paged.write_kernels import write_pages_kernel  # noqa: E402

BF16, FP32 = torch.bfloat16, torch.float32


def empty(*shape, dtype=torch.int32):
    return torch.empty(shape, dtype=dtype, device="meta")


def builds(D, dtype=BF16, *, page=16, G=4, S=64, T=1, tree=False, target="sm_90") -> dict[str, Build]:
    """What a launch with the plan for S sequences of T tokens would compile."""
    q, pages = empty(S * T, 8 * G, D, dtype=dtype), empty(100, page, 8, D, dtype=dtype)
    recorders = Kernels(*(Recorder(kernel, target=target) for kernel in (ragged_kernel, split_kernel, merge_kernel)))
    plan = plan_for(S * T, S, G, 8, D, q.element_size(), T, tree, target, 132)
    paged_attention(
        q, pages, pages, query_start_loc=empty(S + 1), seq_lens=empty(S), block_table=empty(S, 64), max_query_len=T,
        max_seq_len=64 * page, tree_mask=empty(S * T, T, dtype=torch.bool) if tree else None, plan=plan,
        kernels=recorders,
    )  # fmt: skip
    recorded = {"ragged": recorders.ragged, "split": recorders.split, "merge": recorders.merge}
    return {name: recorder.builds[0] for name, recorder in recorded.items() if recorder.builds}


def writing(D, page, R, *, Hkv=3, G=3, norm=False, latent=False) -> Build:
    recorder = Recorder(write_pages_kernel)
    k, pages = empty(64, Hkv, D, dtype=BF16), empty(100, page, Hkv, D, dtype=BF16)
    v, value_pages = (None, None) if latent else (k, pages)
    turn = Rotation(empty(64, R, dtype=BF16), empty(64, R, dtype=BF16))
    weight = empty(D, dtype=BF16) if norm else None
    write_pages(
        k, v, pages, value_pages, empty(64), q=empty(64, G * Hkv, D, dtype=BF16), turn=turn, q_norm=weight,
        k_norm=weight, kernel=recorder,
    )  # fmt: skip
    return recorder.builds[0]


PROMPTS = dict(S=8, T=512)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, list[Compiled]]:
    """Through one compiler's process. The shapes of PERFORMANCE.md's rows are always among them."""
    wanted = {
        "ragged": [
            builds(D, page=page, tree=tree, **PROMPTS)["ragged"]
            for D, page, tree in sample(
                itertools.product((64, 96, 128, 256), (16, 64), (False, True)),
                1,
                always=[(64, 16, False), (128, 16, False), (128, 64, True)],
            )
        ],
        "split": [
            builds(D, page=page, G=G, T=T, tree=tree)["split"]
            for D, page, G, T, tree in sample(
                itertools.product((64, 128, 256), (16, 64), (1, 4), (1, 4), (False, True)),
                1,
                always=[(128, 16, 4, 1, False), (128, 64, 4, 1, False), (64, 16, 3, 1, False), (128, 16, 4, 4, True)],
            )
        ],
        "merge": [builds(D)["merge"] for D in (64, 256)],
        "write": [
            writing(64, 16, 64),
            writing(128, 64, 32),
            writing(128, 16, 128, Hkv=8, G=2, norm=True),  # Qwen3-0.6B
            writing(576, 64, 64, Hkv=1, G=128, latent=True),  # DeepSeek-V3
        ],
        "others": [
            builds(D, dtype, target=target, **PROMPTS)[name]
            for D, dtype, target, name in sample(
                itertools.product((64, 128, 256), (BF16, FP32), ("sm_80", "sm_89"), ("ragged", "split")),
                1,
                always=[(256, BF16, "sm_89", "ragged"), (256, BF16, "sm_89", "split"), (128, FP32, "sm_90", "ragged")],
            )
        ],
    }
    # One that was compiled already is taken from Triton's cache, where the assembler says nothing: each once.
    once = {(name, repr(build)): (name, build) for name, found in wanted.items() for build in found}
    flat = list(once.values())
    kernels = compile_kernels([build for _, build in flat], cache=tmp_path_factory.mktemp("compiled"))
    found = {name: [] for name in wanted}
    for (name, _), kernel in zip(flat, kernels, strict=True):
        assert isinstance(kernel, Compiled), str(kernel)
        found[name].append(kernel)
    return found


def test_compiled_for_hopper_prompts_use_the_tensor_cores_of_four_warps_and_spill_nothing(compiled):
    for kernel in compiled["ragged"]:
        assert kernel.wgmma and kernel.spill_bytes == 0 and not kernel.warnings, str(kernel)


def test_compiled_for_hopper_decoding_uses_tensor_cores_and_spills_nothing(compiled):
    for kernel in compiled["split"]:
        assert "mma.sync" in kernel.ptx or kernel.wgmma, str(kernel)
        assert kernel.spill_bytes == 0 and not kernel.warnings, str(kernel)


def test_while_a_tile_of_keys_is_computed_two_are_on_the_way_or_those_of_other_programs_of_the_sm(compiled):
    for kernel in compiled["split"]:
        waits = [line.split()[-1].rstrip(";") for line in kernel.ptx.splitlines() if "cp.async.wait_group" in line]
        pipelined = max(int(n, 0) for n in waits) >= 4  # K and V of two tiles
        assert pipelined or kernel.occupancy().programs * kernel.shared_bytes >= 96 * 1024, (str(kernel), waits)


def test_an_sm_holds_as_many_programs_of_the_split_kernel_as_it_is_given(compiled):
    shapes = [(128, 16, 4), (128, 64, 4), (64, 16, 3)]
    for kernel, (D, _, G) in zip(compiled["split"], shapes, strict=False):
        given = plan_for(64, 64, G, 8, D, 2, 1, False, "sm_90", 132).programs / 132
        assert kernel.occupancy().programs >= given, str(kernel)


def test_small_kernels_fit_and_other_gpus_have_shared_memory_for_their_tiles(compiled):
    for kernel in (*compiled["merge"], *compiled["write"]):
        assert kernel.spill_bytes == 0 and kernel.occupancy().programs >= 4, str(kernel)
    for kernel in compiled["others"]:
        assert kernel.shared_bytes <= SMS[kernel.target].shared_bytes_per_program, str(kernel)
