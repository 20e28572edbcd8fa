"""The settings of a model of DeepSeek's, from a laptop's size to the published ones."""

import math
from dataclasses import KW_ONLY, dataclass, field

from llmsys.models.deepseek.yarn import Yarn
from llmsys.models.mixture import MixtureConfig
from llmsys.moe import RouterConfig
from llmsys.moe.router import DEEPSEEK_V3 as ROUTER_OF_V3


@dataclass(frozen=True)
class DeepSeekConfig(MixtureConfig):
    """Everything about a model of this kind that is not a weight.

    `head_size` is R, the columns of a head that turn; besides, a head of q and k has Dn columns that do not. Raises
    ValueError where sizes do not go together.
    """

    kv_heads: int = field(init=False, default=1, repr=False)  # the latent is one head's, for all query heads
    _: KW_ONLY
    latent_size: int = 512  #  L, of c
    nope_size: int = 128  #    Dn, of q and k, without a position
    value_size: int = 128  #   Dv
    query_latent_size: int | None = None  # q has a latent, too, of this size (it is kept nowhere); None: q = W x
    interleaved: bool = True  # turning pairs are neighbours
    yarn: Yarn | None = None  # in place of `rope_divisors`

    def __post_init__(self):
        super().__post_init__()
        for size in ("latent_size", "nope_size", "value_size"):
            if getattr(self, size) < 1:
                raise ValueError(f"{size} must be at least 1, got {getattr(self, size)}")
        if self.query_latent_size is not None and self.query_latent_size < 1:
            raise ValueError(f"query_latent_size must be at least 1, or None, got {self.query_latent_size}")
        if self.qk_norm:
            raise ValueError("qk_norm must be False: heads have no norms of their own here, latents have")
        if self.yarn is not None and self.rope_divisors is not None:
            raise ValueError("yarn and rope_divisors cannot both be given: either says how positions are stretched")

    @property
    def query_size(self) -> int:
        """Dn + R, of a head of q and k: 192."""
        return self.nope_size + self.head_size

    @property
    def kept_size(self) -> int:
        """L + R, of what a layer's cache keeps of a token: 576."""
        return self.latent_size + self.head_size

    @property
    def expanded_size(self) -> int:
        """Dn + Dv: what a head makes of the latent."""
        return self.nope_size + self.value_size

    @property
    def scale(self) -> float:
        """The softmax's: 1/√(Dn + R), in either form of attention, and more where YaRN says so."""
        return (1.0 if self.yarn is None else self.yarn.of_scale) / math.sqrt(self.query_size)


DEEPSEEK_V3 = DeepSeekConfig(
    name="DeepSeek-V3", vocab_size=129_280, hidden_size=7168, layers=61, heads=128, head_size=64, mlp_size=18_432,
    context_length=163_840, norm_eps=1e-6, tied_embeddings=False, router=ROUTER_OF_V3, expert_size=2048,
    shared_size=2048, dense_layers=(0, 1, 2), query_latent_size=1536,
    yarn=Yarn(40.0, 4096, mscale=1.0, mscale_all_dim=1.0),
)  # fmt: skip
"""https://arxiv.org/abs/2412.19437, section 4.2, and config.json of deepseek-ai/DeepSeek-V3; without the layer that
predicts one token more."""

DEEPSEEK_V2_LITE = DeepSeekConfig(
    name="DeepSeek-V2-Lite", vocab_size=102_400, hidden_size=2048, layers=27, heads=16, head_size=64, mlp_size=10_944,
    context_length=163_840, norm_eps=1e-6, tied_embeddings=False, router=RouterConfig(64, 6, normalise=False),
    expert_size=1408, shared_size=2 * 1408, dense_layers=(0,),
    yarn=Yarn(40.0, 4096, mscale=0.707, mscale_all_dim=0.707),
)  # fmt: skip
"""https://arxiv.org/abs/2405.04434, appendix B, and config.json of deepseek-ai/DeepSeek-V2-Lite."""

SMALL = DeepSeekConfig(
    name="small", vocab_size=49_152, hidden_size=384, layers=8, heads=6, head_size=32, mlp_size=1024,
    context_length=2048, router=RouterConfig(32, 4, "sigmoid", scale=2.5, bias=True, groups=4, kept_groups=2),
    expert_size=192, shared_size=192, dense_layers=(0,), latent_size=128, nope_size=64, value_size=64,
    query_latent_size=192,
)  # fmt: skip
"""All of V3's parts in a model of tens of millions of parameters, with SmolLM2's vocabulary."""
