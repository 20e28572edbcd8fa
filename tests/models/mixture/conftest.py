"""Mixtures of experts in each of the three layouts, written by transformers with random weights."""

import pytest
import torch

from llmsys.hardware.tier import load_triton, triton_installed

if triton_installed():
    load_triton()  # transformers' model classes import Triton, too, and the first import decides its mode

SIZES = dict(
    vocab_size=97, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=8,
    max_position_embeddings=128, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    rope_parameters={"rope_type": "default", "rope_theta": 5e3}, num_experts_per_tok=3,
)  # fmt: skip
DOTS = dict(
    intermediate_size=80, moe_intermediate_size=24, n_routed_experts=12, n_shared_experts=2, first_k_dense_replace=1,
    norm_topk_prob=True, routed_scaling_factor=2.5, n_group=4, topk_group=2,
)  # fmt: skip
VARIANTS = {
    "mixtral": ("Mixtral", dict(intermediate_size=40, num_local_experts=5)),
    "qwen3_moe": (
        "Qwen3Moe",
        dict(intermediate_size=80, moe_intermediate_size=24, num_experts=7, norm_topk_prob=True, mlp_only_layers=[1]),
    ),
    "qwen3_moe, tied, not normalised": (
        "Qwen3Moe",
        dict(moe_intermediate_size=16, num_experts=8, norm_topk_prob=False, tie_word_embeddings=True),
    ),
    "dots1": ("Dots1", DOTS),
    "dots1, one group": ("Dots1", DOTS | dict(n_group=1, topk_group=1, n_shared_experts=1, norm_topk_prob=False)),
}


def theirs(variant: str):
    """transformers' model, its router's biases some below 0."""
    transformers = pytest.importorskip("transformers")
    name, more = VARIANTS[variant]
    torch.manual_seed(len(variant))
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**(SIZES | more)))
    with torch.no_grad():
        for weight in model.parameters():  # norms of 1 and tiny weights would forgive too much
            weight.add_(torch.randn_like(weight) * 0.15)
        for name, bias in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                bias.copy_(torch.randn_like(bias) * 0.3 - 0.2)
    return model.eval()


@pytest.fixture(params=VARIANTS)
def pair(request, tmp_path):
    """(transformers' model, the directory that it was saved to)"""
    model = theirs(request.param)
    model.save_pretrained(tmp_path / "theirs")
    return model, tmp_path / "theirs"
