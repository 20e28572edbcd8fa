"""A Llama whose MLPs are mixtures of experts: `MixtureLlama` (`model`), and how Hugging Face lays its weights out
(`layouts`)."""

from llmsys.models.mixture.model import Balance, MixtureConfig, MixtureLlama

__all__ = ["Balance", "MixtureConfig", "MixtureLlama"]
