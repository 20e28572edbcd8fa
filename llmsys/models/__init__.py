"""A real language model, on any attention.

    from llmsys.models import generate, load_model
    model = load_model()                                   # SmolLM2-135M-Instruct, or a path
    print(generate(model, "Why is the sky blue?", attention="online").text)

`save_model` writes a directory that `load_model` reads; `llmsys.training` changes what is in it.
"""

from pathlib import Path

from llmsys.cache import Backend, Batch, ContiguousCache, NoCache, as_backend
from llmsys.models.checkpoints.save import save_model
from llmsys.models.checkpoints.weights import find_smollm2, load_model
from llmsys.models.deepseek import DeepSeek, DeepSeekConfig
from llmsys.models.generate import Generation, generate, stream_generate
from llmsys.models.generate_batch import generate_batch
from llmsys.models.llama import Llama, LlamaConfig
from llmsys.models.mixture import Balance, MixtureConfig, MixtureLlama
from llmsys.models.modules import Linear, LinearFactory
from llmsys.models.sampling import greedy, sampler
from llmsys.models.text.text_stream import TextStream
from llmsys.models.text.tokenizer import Tokenizer
from llmsys.models.training_step import TrainingStep

__path__.append(str(Path(__file__).parents[1] / "moved" / "models"))  # names from before: llmsys.moved
__all__ = [
    "Backend",
    "Balance",
    "Batch",
    "ContiguousCache",
    "DeepSeek",
    "DeepSeekConfig",
    "Generation",
    "Linear",
    "LinearFactory",
    "Llama",
    "LlamaConfig",
    "MixtureConfig",
    "MixtureLlama",
    "NoCache",
    "TextStream",
    "Tokenizer",
    "TrainingStep",
    "as_backend",
    "find_smollm2",
    "generate",
    "generate_batch",
    "greedy",
    "load_model",
    "sampler",
    "save_model",
    "stream_generate",
]
