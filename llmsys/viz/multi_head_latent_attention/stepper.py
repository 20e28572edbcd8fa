"""The stepper of lesson 15: the products of one decode step, one after the other, and where they stand on a roofline.

Models, batch, context and the form of attention can be chosen; all figures are those of `products`.
"""

from llmsys.hardware.devices import DEVICES, DeviceSpec
from llmsys.viz.kit.controls import Choice
from llmsys.viz.kit.stepper import Stepper
from llmsys.viz.multi_head_latent_attention.frame import Frame, describe, draw
from llmsys.viz.multi_head_latent_attention.products import DESIGNS, products
from llmsys.viz.roofline.frame import tokens

BATCHES, CONTEXTS, QUERIES = (1, 8, 32, 128), (1024, 8192, 32_768, 131_072), (1, 2, 4)


def stepper(
    device: DeviceSpec = DEVICES["H100 SXM"], *, batch: int = 32, context: int = 8192, queries: int = 1
) -> Stepper:
    """Step through a layer's products. `batch`, `context` and `queries` are the choice at first: ValueError where they
    are none of `BATCHES`, `CONTEXTS` and `QUERIES`."""
    designs = {each.name: each for each in DESIGNS}

    def frames(design: str, batch: int, context: int, queries: int) -> list[Frame]:
        steps = products(designs[design], batch=batch, context=context, queries=queries)
        return [Frame(designs[design], tuple(steps), now, device, batch, context, queries) for now in range(len(steps))]

    return Stepper(
        frames,
        draw,
        title="One layer's attention in a decode step",
        describe=describe,
        controls=[
            Choice("design", "Model", {name: name for name in designs}),
            Choice("batch", "Batch", {str(each): each for each in BATCHES}, start=batch, slider=True),
            Choice("context", "Context", {tokens(each): each for each in CONTEXTS}, start=context, slider=True),
            Choice("queries", "New tokens", {str(each): each for each in QUERIES}, start=queries),
        ],
        static=-1,
        keep_place=True,
    )
