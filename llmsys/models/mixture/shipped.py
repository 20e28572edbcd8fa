"""The small mixture of experts that comes with the package: trained on the corpus' bytes, without anything that keeps
its loads even, by `llmsys.bench.moe_training`, which repeats it in less than a minute on a GPU. One whose loads were
kept even is `llmsys.models.deepseek.shipped`'s.

    model = load_shipped()
    x, routings = model.routed(torch.tensor([model.tokenizer.encode("def ")]))
"""

from pathlib import Path

import torch

from llmsys.models.checkpoints.weights import load_model
from llmsys.models.mixture.model import MixtureLlama

FOLDER = Path(__file__).parent / "weights"


def load_shipped(*, device: str | torch.device = "cpu") -> MixtureLlama:
    """The model, in fp32: its files hold bf16."""
    return load_model(FOLDER, device=device)
