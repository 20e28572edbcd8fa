"""DeepSeek's models in both layouts, written by transformers with random weights."""

import pytest
import torch

from llmsys.hardware.tier import load_triton, triton_installed

if triton_installed():
    load_triton()  # transformers' model classes import Triton, too, and the first import decides its mode

SIZES = dict(
    vocab_size=97, hidden_size=48, intermediate_size=80, moe_intermediate_size=24, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=4, n_routed_experts=12, n_shared_experts=2, num_experts_per_tok=3,
    kv_lora_rank=16, q_lora_rank=20, qk_rope_head_dim=8, qk_nope_head_dim=10, v_head_dim=12, first_k_dense_replace=1,
    max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    rope_parameters={"rope_type": "default", "rope_theta": 5e3},
)  # fmt: skip
V3 = dict(n_group=4, topk_group=2)
V2 = dict(n_group=1, topk_group=1)
YARN = {
    "rope_type": "yarn", "rope_theta": 5e3, "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 6.0,
    "beta_slow": 0.5,
}  # fmt: skip
VARIANTS = {
    "v3": ("V3", V3),
    "v3, q without a latent": ("V3", V3 | dict(q_lora_rank=None, first_k_dense_replace=0)),
    "v3, one group, not normalised": ("V3", V3 | dict(n_group=1, topk_group=1, norm_topk_prob=False)),
    "v3, halves turn": ("V3", V3 | dict(rope_interleave=False)),
    "v3, tied, all layers dense": ("V3", V3 | dict(tie_word_embeddings=True, first_k_dense_replace=3)),
    "v3, yarn": ("V3", V3 | dict(rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 0.6})),
    "v3, yarn without mscale": ("V3", V3 | dict(rope_parameters=YARN)),
    "v3, linear": ("V3", V3 | dict(rope_parameters={"rope_type": "linear", "rope_theta": 5e3, "factor": 4.0})),
    "v2, greedy": ("V2", V2 | dict(topk_method="greedy", q_lora_rank=None)),
    "v2, in groups": ("V2", V3 | dict(topk_method="group_limited_greedy", routed_scaling_factor=4.0)),
    "v2, yarn": ("V2", V2 | dict(rope_parameters=YARN | {"mscale": 0.707, "mscale_all_dim": 0.707})),
}  # fmt: skip


def theirs(variant: str, **more):
    """transformers' model, its router's biases some below 0."""
    transformers = pytest.importorskip("transformers")
    family, settings = VARIANTS[variant]
    torch.manual_seed(len(variant))
    config = getattr(transformers, f"Deepseek{family}Config")(**(SIZES | settings | more))
    model = getattr(transformers, f"Deepseek{family}ForCausalLM")(config)
    with torch.no_grad():
        for weight in model.parameters():  # norms of 1, routers of 0 and tiny weights would forgive too much
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
