"""The kernels of the few-kernel step, compiled for a Hopper GPU that need not be here: weights first, then the wait."""

import re

import pytest
import torch

from llmsys.cache import Batch, PagedCache
from llmsys.hardware.compiler import Compiled, compile_kernels
from llmsys.hardware.launches import Recorder
from llmsys.hardware.tier import triton_installed
from llmsys.models import Llama, LlamaConfig
from llmsys.models.few_kernels import FewKernelForward, plan_for

if not triton_installed():
    pytest.skip("needs Triton", allow_module_level=True)
from llmsys.models.few_kernels.forward import Kernels, library_kernels  # noqa: E402

QWEN3 = LlamaConfig(
    name="Qwen3-0.6B", vocab_size=151936, hidden_size=1024, layers=1, heads=16, kv_heads=8, head_size=128,
    mlp_size=3072, context_length=40960, qk_norm=True,
)  # fmt: skip
SMOLLM2 = LlamaConfig(
    name="SmolLM2-135M", vocab_size=49152, hidden_size=576, layers=1, heads=9, kv_heads=3, head_size=64, mlp_size=1536,
    context_length=8192,
)  # fmt: skip
BARRIERS = re.compile(r"bar\.sync|barrier\.sync")


def recorded(config: LlamaConfig, S: int, dtype=torch.bfloat16) -> Kernels:
    """Recorders that have seen a step of S sequences."""
    with torch.device("meta"):
        model = Llama(config).to(dtype)
    kernels = library_kernels()
    recorders = Kernels(**{name: Recorder(getattr(kernels, name)) for name in Kernels.__dataclass_fields__})
    forward = FewKernelForward(model, most=S, plan=plan_for(config, S), kernels=recorders, dependent=True)

    def empty(*shape):
        return torch.empty(shape, dtype=torch.int32, device="meta")

    batch = Batch(
        positions=empty(S), tokens=empty(1, S), query_start_loc=empty(S + 1), seq_lens=empty(S), slot_mapping=empty(S),
        block_table=empty(S, 32), logits_indices=empty(S), block_size=16, max_query_len=1,
    )  # fmt: skip
    forward(batch.tokens, PagedCache(num_blocks=1000, block_size=16), batch)
    return recorders


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[tuple[str, int, str], Compiled]:
    """(model, S, kernel) -> what became of it."""
    builds = {}
    of_one = [name for name in Kernels.__dataclass_fields__ if name != "merge"]
    for config, S, names in ((QWEN3, 1, of_one), (SMOLLM2, 1, of_one[1:-1]), (QWEN3, 4, ("gate_up", "down", "merge"))):
        recorders = recorded(config, S)
        for name in names:
            for build in getattr(recorders, name).builds[:1]:
                builds[config.name, S, name] = build
    found = compile_kernels(builds.values(), cache=tmp_path_factory.mktemp("compiled"))
    for kernel in found:
        assert isinstance(kernel, Compiled), str(kernel)
    return dict(zip(builds, found, strict=True))


def test_a_step_of_one_sequence_is_five_kernels_a_layer_and_two_at_the_ends():
    kernels = recorded(SMOLLM2, 1)
    assert [len(getattr(kernels, name).builds) for name in Kernels.__dataclass_fields__] == [1, 1, 1, 1, 0, 1, 1, 1]


def test_nothing_spills_and_all_let_the_next_one_begin_before_they_do_anything(compiled):
    for kernel in compiled.values():
        assert kernel.spill_bytes == 0, str(kernel)
        code = [line for line in kernel.ptx.splitlines() if re.search(r"griddepcontrol|ld\.global|st\.global", line)]
        assert "griddepcontrol.launch_dependents" in code[0], str(kernel)


def test_weights_and_old_keys_are_asked_for_before_the_wait_and_results_written_after_it(compiled):
    for (_, _, name), kernel in compiled.items():
        if name not in ("embedding", "merge"):
            before, after = kernel.ptx.split("griddepcontrol.wait")
            assert before.count("ld.global") >= 8 and "st.global" not in before, str(kernel)
            assert "ld.global" in after and "st.global" in after, str(kernel)


def test_products_that_are_not_added_have_one_warp_and_no_barriers(compiled):
    for (_, _, name), kernel in compiled.items():
        if name in ("qkv", "gate_up", "merge"):
            assert kernel.num_warps == 1 and not BARRIERS.search(kernel.ptx), str(kernel)


def test_neither_weights_nor_x_are_moved_between_lanes(compiled):
    for (_, _, name), kernel in compiled.items():
        if name in ("qkv", "gate_up", "down"):
            moved = re.findall(r"convert_layout.*tensor<\d+x\d+x", kernel.ttgir)
            assert not moved and kernel.shared_bytes <= 64, str(kernel)
