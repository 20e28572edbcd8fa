"""Exercise (b) on plain data: a model's shape is handed over as its numbers."""

from collections.abc import Callable

from llmsys.models.shapes import Experts, Latent, ModelShape


def of_shape(function: Callable) -> Callable:
    """`function(shape, dtype)` as one of plain numbers; `latent` is [q_rank, kv_rank, rope_dim], or None.

    Where `dense_layers` is given, the layers above so many have a mixture of experts for their MLP.
    """

    def run(*, layers, width, heads, kv_heads, head_dim, latent, dtype, dense_layers=None):
        mixture = {"routed": 8, "active": 2, "shared": 1, "width": width}
        shape = ModelShape(
            name="a model",
            layers=layers,
            width=width,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            ffn=4 * width,
            vocab=1000,
            latent=Latent(*latent) if latent else None,
            experts=None if dense_layers is None else Experts(**mixture, dense_layers=dense_layers),
        )
        return function(shape, dtype)

    return run
