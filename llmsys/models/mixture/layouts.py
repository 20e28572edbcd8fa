"""How Hugging Face writes down models with mixtures of experts: three families, which differ in names and in routers.

    mixtral     softmax, normalised; every layer has experts
    qwen3_moe   softmax; norms of q's and k's heads; some layers may be dense
    dots1       DeepSeek-V3's router and shared expert, on the attention of Qwen3; the first layers may be dense

Each expert's matrices are tensors of their own there. Sources: transformers' classes of these names, and the
config.json files of mistralai/Mixtral-8x7B-v0.1, Qwen/Qwen3-30B-A3B and rednote-hilab/dots.llm1.inst.
"""

from typing import Any

from llmsys.models.checkpoints.settings import Settings
from llmsys.models.llama import LlamaConfig
from llmsys.models.mixture.model import MixtureConfig
from llmsys.moe import RouterConfig

FAMILIES = {"mixtral": "Mixtral", "qwen3_moe": "Qwen3Moe", "dots1": "Dots1"}
"""By model_type, how the names of transformers' classes begin."""

_EXPERTS = {
    "router": "model.layers.{}.mlp.gate.weight",
    "expert_gate": "model.layers.{}.mlp.experts.{}.gate_proj.weight",
    "expert_up": "model.layers.{}.mlp.experts.{}.up_proj.weight",
    "expert_down": "model.layers.{}.mlp.experts.{}.down_proj.weight",
}
NAMES = {
    "mixtral": {
        "router": "model.layers.{}.block_sparse_moe.gate.weight",
        "expert_gate": "model.layers.{}.block_sparse_moe.experts.{}.w1.weight",
        "expert_up": "model.layers.{}.block_sparse_moe.experts.{}.w3.weight",
        "expert_down": "model.layers.{}.block_sparse_moe.experts.{}.w2.weight",
    },
    "qwen3_moe": _EXPERTS,
    "dots1": _EXPERTS
    | {
        "router_bias": "model.layers.{}.mlp.gate.e_score_correction_bias",
        "shared_gate": "model.layers.{}.mlp.shared_experts.gate_proj.weight",
        "shared_up": "model.layers.{}.mlp.shared_experts.up_proj.weight",
        "shared_down": "model.layers.{}.mlp.shared_experts.down_proj.weight",
    },
}
"""Of the parts that a plain Llama has not: layer and expert are the two numbers."""

KEYS = {
    "mixtral": {"experts": "num_local_experts", "expert_size": "intermediate_size"},
    "qwen3_moe": {"experts": "num_experts", "expert_size": "moe_intermediate_size"},
    "dots1": {
        "experts": "n_routed_experts",
        "expert_size": "moe_intermediate_size",
        "shared_size": "n_shared_experts · moe_intermediate_size",
    },
}
"""What config.json calls the sizes, for messages."""


def read_mixture(settings: Settings, family: str, config: LlamaConfig) -> MixtureConfig:
    """The settings of config.json as ours; `config` has those that a plain Llama has, too. Errors name the key."""
    read = {"mixtral": _read_mixtral, "qwen3_moe": _read_qwen3, "dots1": _read_dots1}[family]
    try:
        return MixtureConfig(**vars(config), **read(settings, config))
    except ValueError as error:
        if str(settings.where) in str(error):
            raise
        raise ValueError(f"{settings.where}: {error}") from error


def _read_mixtral(settings: Settings, config: LlamaConfig) -> dict[str, Any]:
    if "sliding_window" in settings:
        raise settings.wrong("sliding_window", "null: every layer sees all tokens")
    router = RouterConfig(settings.size("num_local_experts", 8), settings.size("num_experts_per_tok", 2))
    return {"router": router, "expert_size": config.mlp_size}


def _read_qwen3(settings: Settings, config: LlamaConfig) -> dict[str, Any]:
    experts = settings.size("num_experts", settings.size("num_local_experts", 128))  # newer files have the latter
    every = settings.size("decoder_sparse_step", 1)
    dense = set(settings.whole_numbers("mlp_only_layers", []))
    return {
        "router": RouterConfig(
            experts, settings.size("num_experts_per_tok", 8), normalise=settings.flag("norm_topk_prob", False)
        ),
        "expert_size": settings.size("moe_intermediate_size", 768),
        "dense_layers": tuple(i for i in range(config.layers) if i in dense or (i + 1) % every),
    }


def _read_dots1(settings: Settings, config: LlamaConfig) -> dict[str, Any]:
    if "layer_types" not in settings and "sliding_window" in settings:
        if settings.size("max_window_layers", 62) < config.layers:
            raise settings.wrong("max_window_layers", f"the {config.layers} layers: every layer sees all tokens")
    size = settings.size("moe_intermediate_size", 1408)
    return {
        "router": RouterConfig(
            settings.size("n_routed_experts"),
            settings.size("num_experts_per_tok"),
            "sigmoid",
            normalise=settings.flag("norm_topk_prob", False),
            scale=settings.number("routed_scaling_factor", 1.0),
            bias=True,
            groups=settings.size("n_group", 1),
            kept_groups=settings.size("topk_group", 1),
        ),
        "expert_size": size,
        "shared_size": settings.size("n_shared_experts") * size,
        "dense_layers": tuple(range(int(settings.number("first_k_dense_replace", 0.0, or_equal=True)))),
    }


def family_of(config: MixtureConfig) -> str:
    """Which of the families a model is. ValueError where it is none of them."""
    router = config.router
    if router.scoring == "softmax" and config.shared_size == 0:
        if config.qk_norm:
            return "qwen3_moe"
        if router.normalise and not config.dense_layers and config.mlp_size == config.expert_size:
            return "mixtral"
    first = config.dense_layers == tuple(range(len(config.dense_layers)))
    shared = config.shared_size and config.shared_size % config.expert_size == 0
    if router.scoring == "sigmoid" and router.bias and config.qk_norm and shared and first:
        return "dots1"
    raise ValueError(
        "config must be Mixtral's (softmax, normalised, no dense layers, mlp_size = expert_size), Qwen3-MoE's "
        "(softmax, qk_norm, nothing shared) or dots.llm1's (sigmoid with a bias, qk_norm, shared_size a multiple of "
        f"expert_size, the first layers dense) to be written as transformers' settings, got {config}"
    )


def words_for(config: MixtureConfig) -> dict[str, Any]:
    """The settings that a plain Llama has not, in transformers' words."""
    router, family = config.router, family_of(config)
    common = {"num_experts_per_tok": router.k, "sliding_window": None}
    if family == "mixtral":
        return common | {"num_local_experts": router.experts}
    common |= {"moe_intermediate_size": config.expert_size, "norm_topk_prob": router.normalise}
    if family == "qwen3_moe":
        return common | {
            "num_experts": router.experts,
            "decoder_sparse_step": 1,
            "mlp_only_layers": list(config.dense_layers),
        }
    return common | {
        "n_routed_experts": router.experts,
        "n_shared_experts": config.shared_size // config.expert_size,
        "routed_scaling_factor": router.scale,
        "n_group": router.groups,
        "topk_group": router.kept_groups,
        "first_k_dense_replace": len(config.dense_layers),
        "layer_types": ["full_attention"] * config.layers,
    }
