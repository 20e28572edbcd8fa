"""Two small mixtures of experts that come with the package: trained on the corpus' bytes, one with its routers' biases
moved against the loads, the other without anything that keeps loads even (`llmsys.bench.moe_training`, which repeats
their training in a minute on a GPU).

    model = load_shipped("bias")
    x, routings = model.routed(torch.tensor([model.tokenizer.encode("def ")]))
"""

from pathlib import Path

import torch

from llmsys.models.checkpoints.weights import load_model
from llmsys.models.mixture.model import MixtureLlama

FOLDER = Path(__file__).parent / "weights"


def load_shipped(balance: str = "bias", *, device: str | torch.device = "cpu") -> MixtureLlama:
    """The model that was trained with `balance`, "bias" or "none", in fp32: its files hold bf16.

    Raises ValueError for another name.
    """
    known = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
    if balance not in known:
        raise ValueError(f"balance must be one of {', '.join(known)}, got {balance!r}")
    return load_model(FOLDER / balance, device=device)
