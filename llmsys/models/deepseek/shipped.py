"""The small model with latent attention that comes with the package: trained on the corpus' bytes by
`llmsys.bench.mla_training`, which repeats it in a minute on a GPU.

    model = load_shipped()
    generate(model, "def ", max_new_tokens=40)
"""

from pathlib import Path

import torch

from llmsys.models.checkpoints.weights import load_model
from llmsys.models.deepseek.model import DeepSeek

FOLDER = Path(__file__).parent / "weights"


def load_shipped(*, device: str | torch.device = "cpu") -> DeepSeek:
    """The model, in fp32: its files hold bf16."""
    return load_model(FOLDER, device=device)
