"""Multi-head latent attention: every token keeps one latent vector, which all heads share."""

from llmsys.attention.latent.decode import latent_decode

__all__ = ["latent_decode"]
