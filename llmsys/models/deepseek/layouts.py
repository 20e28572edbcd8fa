"""How Hugging Face writes down DeepSeek's models: the families deepseek_v2 and deepseek_v3.

They differ in the router (V2's softmax, with or without groups; V3's sigmoid with a bias), in which elements turn
together (V2 knows neighbours alone), and in what a setting that is left out means. Settings are called as in
transformers' classes of these names and in config.json of deepseek-ai/DeepSeek-V2, -V2-Lite and -V3; each expert's
matrices are tensors of their own.

Layers behind the last one predict one token more (V3's "MTP"). The model is whole without them, so their tensors are
passed over.
"""

import re
from typing import Any

from llmsys.models.checkpoints.settings import Settings, shown
from llmsys.models.deepseek.config import DeepSeekConfig
from llmsys.models.deepseek.yarn import Yarn
from llmsys.models.mixture import layouts
from llmsys.models.rope_scaling import from_config
from llmsys.moe import RouterConfig

FAMILIES = {"deepseek_v2": "DeepseekV2", "deepseek_v3": "DeepseekV3"}
"""By model_type, how the names of transformers' classes begin."""

PARTS = {
    "layers.*.query": ("query",),
    "layers.*.query_down": ("query_down",),
    "layers.*.query_norm": ("query_norm",),
    "layers.*.query_up": ("query_up",),
    "layers.*.latent_down": ("latent_down",),
    "layers.*.latent_norm": ("latent_norm",),
    "layers.*.latent_up": ("latent_up",),
    "layers.*.output": ("latent_output",),
}
"""The weights of latent attention, and of which tensors they are made (`llmsys.models.checkpoints.weights.PARTS`)."""

SHAPES = {
    "query": (("heads", "query_size"), ("hidden_size",)),
    "query_down": (("query_latent_size",), ("hidden_size",)),
    "query_norm": (("query_latent_size",),),
    "query_up": (("heads", "query_size"), ("query_latent_size",)),
    "latent_down": (("kept_size",), ("hidden_size",)),
    "latent_norm": (("latent_size",),),
    "latent_up": (("heads", "expanded_size"), ("latent_size",)),
    "latent_output": (("hidden_size",), ("heads", "value_size")),
}
"""Their shapes, as fields of the config."""

_ATTENTION = {
    "query": "q_proj",
    "query_down": "q_a_proj",
    "query_norm": "q_a_layernorm",
    "query_up": "q_b_proj",
    "latent_down": "kv_a_proj_with_mqa",
    "latent_norm": "kv_a_layernorm",
    "latent_up": "kv_b_proj",
    "latent_output": "o_proj",
}
_NAMES = layouts.NAMES["dots1"] | {
    part: f"model.layers.{{}}.self_attn.{name}.weight" for part, name in _ATTENTION.items()
}
NAMES = dict.fromkeys(FAMILIES, _NAMES)
_KEYS = layouts.KEYS["dots1"] | {
    "head_size": "qk_rope_head_dim",
    "query_size": "qk_nope_head_dim + qk_rope_head_dim",
    "query_latent_size": "q_lora_rank",
    "kept_size": "kv_lora_rank + qk_rope_head_dim",
    "latent_size": "kv_lora_rank",
    "expanded_size": "qk_nope_head_dim + v_head_dim",
    "value_size": "v_head_dim",
}
KEYS = dict.fromkeys(FAMILIES, _KEYS)
"""What config.json calls the sizes, for messages."""

ROUTING = {"deepseek_v2": ("greedy", "group_limited_greedy"), "deepseek_v3": ("noaux_tc",)}
"""DeepSeek's words for the ways to choose experts (topk_method), by family; the first is the default."""


def has(config: DeepSeekConfig, part: str) -> bool:
    """Whether a layer's attention has that part of `PARTS`."""
    if part == "query":
        return config.query_latent_size is None
    return config.query_latent_size is not None if part.startswith("query_") else True


def read_config(settings: Settings, family: str, name: str, tied_embeddings: bool) -> DeepSeekConfig:
    """The settings of config.json as ours. ValueError, with the file and the key, for what the model cannot do."""
    v3 = family == "deepseek_v3"
    _refuse(settings)
    if "quantization_config" in settings:
        raise ValueError(
            f"{settings.where}: quantization_config is there: the weights are quantised (DeepSeek-V3's are FP8, with a "
            "scale for each 128 × 128 block in tensors *.weight_scale_inv), and load_model reads plain weights alone; "
            "convert them to bf16 first, as fp8_cast_bf16.py in DeepSeek-V3's repository does"
        )
    size = settings.size
    heads, layers = size("num_attention_heads", 128 if v3 else 32), size("num_hidden_layers", 61 if v3 else 32)
    if size("num_key_value_heads", heads) != heads:
        raise settings.wrong("num_key_value_heads", f"num_attention_heads, {heads}: the latent is all heads' own")
    query_latent = size("q_lora_rank", 1536)
    if "q_lora_rank" in settings.values and settings.raw("q_lora_rank") is None:
        query_latent = None  # said to be none, which is not the same as left out
    turning = size("qk_rope_head_dim", 64)
    if turning % 2:
        raise settings.wrong("qk_rope_head_dim", "even (rotary positions turn pairs)")
    base, divisors, yarn = _rope(settings, turning)
    expert_size = size("moe_intermediate_size", 2048 if v3 else 1407)
    dense = int(settings.number("first_k_dense_replace", 3.0 if v3 else 0.0, or_equal=True))
    try:
        return DeepSeekConfig(
            name=name,
            vocab_size=size("vocab_size", 129_280 if v3 else 102_400),
            hidden_size=size("hidden_size", 7168 if v3 else 4096),
            layers=layers,
            heads=heads,
            head_size=turning,
            mlp_size=size("intermediate_size", 18_432 if v3 else 11_008),
            context_length=size("max_position_embeddings", 4096 if v3 else 2048),
            rope_base=base,
            rope_divisors=divisors,
            norm_eps=settings.number("rms_norm_eps", 1e-6, or_equal=True),
            tied_embeddings=tied_embeddings,
            router=_router(settings, family),
            expert_size=expert_size,
            shared_size=expert_size * int(settings.number("n_shared_experts", 1.0 if v3 else 2.0, or_equal=True)),
            dense_layers=tuple(range(min(dense, layers))),
            latent_size=size("kv_lora_rank", 512),
            nope_size=size("qk_nope_head_dim", 128),
            value_size=size("v_head_dim", 128),
            query_latent_size=query_latent,
            interleaved=settings.flag("rope_interleave", True) if v3 else True,
            yarn=yarn,
        )
    except ValueError as error:
        if str(settings.where) in str(error):
            raise
        raise ValueError(f"{settings.where}: {error}") from error


def _refuse(settings: Settings) -> None:
    settings.none_of(("attention_bias", "mlp_bias"), "and this model has no such thing")
    if (activation := settings.text("hidden_act", "silu")) not in ("silu", "swish"):
        raise ValueError(f"{settings.where}: hidden_act is {shown(activation)}; load_model knows 'silu'")
    if settings.size("moe_layer_freq", 1) != 1:
        raise settings.wrong("moe_layer_freq", "1: every layer behind the dense ones has experts")


def _router(settings: Settings, family: str) -> RouterConfig:
    """What topk_method and its neighbours say."""
    method = settings.text("topk_method", ROUTING[family][0])
    if method not in ROUTING[family]:
        known = " or ".join(f"'{each}'" for each in ROUTING[family])
        raise settings.wrong("topk_method", f"{known} in a model of family {family}, which is how it routes")
    scoring = "sigmoid" if family == "deepseek_v3" else "softmax"
    if (said := settings.text("scoring_func", scoring)) != scoring:
        raise ValueError(f"{settings.where}: scoring_func is {shown(said)}; {method!r} scores by {scoring}")
    v3 = family == "deepseek_v3"
    grouped = method != "greedy"
    normalise = settings.flag("norm_topk_prob", v3)
    if normalise and not v3:
        raise settings.wrong(
            "norm_topk_prob", "false in a model of family deepseek_v2 (implementations do not agree on what true means)"
        )
    return RouterConfig(
        settings.size("n_routed_experts", 256 if v3 else 64),
        settings.size("num_experts_per_tok", 8) if v3 else settings.size("num_experts_per_tok"),
        scoring,
        normalise=normalise,
        scale=settings.number("routed_scaling_factor", 2.5 if v3 else 1.0),
        bias=v3,
        groups=settings.size("n_group", 8 if v3 else 1) if grouped else 1,
        kept_groups=settings.size("topk_group", 4 if v3 else 1) if grouped else 1,
    )


def _rope(settings: Settings, size: int) -> tuple[float, tuple[float, ...] | None, Yarn | None]:
    """The base of the positions, and how they are stretched: by divisors, or by YaRN."""
    empty = Settings({}, settings.where)
    rope = settings.table("rope_scaling", empty)
    if not rope.values:
        rope = settings.table("rope_parameters", empty)
    if rope.text("rope_type", rope.text("type", "default")) != "yarn":
        return *from_config(settings, size), None
    if (fixed := rope.number("attention_factor", None)) is not None:
        raise rope.wrong("attention_factor", f"left out, for mscale and mscale_all_dim say it; not {fixed:g}")
    if not rope.flag("truncate", True):
        raise rope.wrong("truncate", "true")
    yarn = Yarn(
        rope.number("factor"),
        rope.size("original_max_position_embeddings"),
        rope.number("beta_fast", 32.0),
        rope.number("beta_slow", 1.0),
        rope.number("mscale", 0.0, or_equal=True),
        rope.number("mscale_all_dim", 0.0, or_equal=True),
    )
    base = rope.number("rope_theta", None, above=1.0) or settings.number("rope_theta", 10_000.0, above=1.0)
    return base, None, yarn


def config_of(config: DeepSeekConfig) -> dict[str, Any]:
    """The settings that only these families have, in transformers' words; `llmsys.models.checkpoints.save.config_of`
    has the rest.

    ValueError where it has no model of such.
    """
    router = config.router
    family = "deepseek_v3" if router.scoring == "sigmoid" else "deepseek_v2"
    first = config.dense_layers == tuple(range(len(config.dense_layers)))
    fits = router.bias if family == "deepseek_v3" else config.interleaved and not router.normalise
    if not (first and fits and config.shared_size and config.shared_size % config.expert_size == 0):
        raise ValueError(
            "config must be V3's (sigmoid with a bias) or V2's (softmax, not normalised, interleaved), with a shared "
            "expert of a multiple of expert_size, and dense layers that are the first, to be written as transformers' "
            f"settings, got {config}"
        )
    found = {
        "architectures": [f"{FAMILIES[family]}ForCausalLM"],
        "model_type": family,
        "num_key_value_heads": config.heads,
        "q_lora_rank": config.query_latent_size,
        "kv_lora_rank": config.latent_size,
        "qk_nope_head_dim": config.nope_size,
        "qk_rope_head_dim": config.head_size,
        "v_head_dim": config.value_size,
        "moe_intermediate_size": config.expert_size,
        "n_routed_experts": router.experts,
        "n_shared_experts": config.shared_size // config.expert_size,
        "num_experts_per_tok": router.k,
        "first_k_dense_replace": len(config.dense_layers),
        "norm_topk_prob": router.normalise,
        "routed_scaling_factor": router.scale,
        "n_group": router.groups,
        "topk_group": router.kept_groups,
        "topk_method": ROUTING[family][-1 if family == "deepseek_v3" or router.groups > 1 else 0],
    }
    if family == "deepseek_v3":
        found |= {"rope_interleave": config.interleaved, "num_nextn_predict_layers": 0, "scoring_func": "sigmoid"}
    if (yarn := config.yarn) is not None:
        found["rope_parameters"] = {
            "rope_type": "yarn", "rope_theta": config.rope_base, "factor": yarn.factor,
            "original_max_position_embeddings": yarn.old_context, "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow, "mscale": yarn.mscale, "mscale_all_dim": yarn.mscale_all_dim,
        }  # fmt: skip
    return found


def predicts_further_tokens(name: str, settings: Settings, layers: int) -> bool:
    """Whether a tensor is one of a layer that predicts one token more: num_nextn_predict_layers behind the last one."""
    further = settings.number("num_nextn_predict_layers", 0.0, or_equal=True)
    number = re.match(r"model\.layers\.(\d{1,6})\.", name)
    return number is not None and layers <= int(number[1]) < layers + further
