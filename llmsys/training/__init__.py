"""Training: a corpus, an optimiser, checkpoints that are whole or absent, and the loop that joins them.

    from llmsys.models import load_model
    from llmsys.training import Corpus, TrainConfig, train
    model = load_model()
    run = train(model, Corpus.load(model.tokenizer), TrainConfig(steps=100), attention="tiled", out="run")
    run.losses, run.held_out, run.checkpoint

Read in this order: `corpus`, `optimise`, `checkpoint`, `run`, `trainer`. A model in stages, on ranks, is trained by
`llmsys.training.pipelined`.
"""

from llmsys.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from llmsys.training.corpus import Batches, Corpus
from llmsys.training.optimise import Optimiser, cosine_schedule
from llmsys.training.run import Run, Step, TrainConfig
from llmsys.training.trainer import evaluate, next_token_loss, train

__all__ = [
    "Batches",
    "Corpus",
    "Optimiser",
    "Run",
    "Step",
    "TrainConfig",
    "cosine_schedule",
    "evaluate",
    "latest_checkpoint",
    "load_checkpoint",
    "next_token_loss",
    "save_checkpoint",
    "train",
]
