"""The peer: continuous batching as transformers has it, on a model of the same shape with random weights.

Its manager is made, started and warmed up before it is timed, as our engine is. Attention is torch's SDPA: it asks for
a kernel of another package, which is not part of this project, to be fast. So it is slow, and its workload is short.
"""

import time
from collections.abc import Sequence
from dataclasses import fields

import torch

from llmsys.bench.serving.serve import TEMPERATURE
from llmsys.bench.serving.workloads import Asked
from llmsys.hardware.tier import load_triton, triton_installed
from llmsys.models.shapes import ModelShape

TIMEOUT = 120.0
"""Seconds after which a run is given up."""


def seconds_of_transformers(
    shape: ModelShape, asked: Sequence[Asked], *, context_length: int, repeats: int = 1
) -> tuple[float, str]:
    """The seconds of its fastest run of the workload, of so many, and transformers' version.

    Raises RuntimeError where it is not there, is too old to batch continuously, fails, or says too little.
    """
    if triton_installed():
        load_triton()  # in its mode: transformers would import it in the one for a GPU
    try:
        import transformers
        from transformers.generation.configuration_utils import ContinuousBatchingConfig
    except ImportError as error:
        raise RuntimeError(f"transformers cannot batch continuously here: {error}") from error
    model = _model(transformers, shape, context_length)
    known = {field.name for field in fields(ContinuousBatchingConfig)}
    wanted = {"auto_switch_to_flash": False, "allow_block_sharing": False, "max_requests_per_batch": len(asked)}
    manager = model.init_continuous_batching(
        generation_config=transformers.GenerationConfig(
            do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0, max_new_tokens=max(n for _, n, _ in asked),
            eos_token_id=-1, pad_token_id=0,
        ),
        continuous_batching_config=ContinuousBatchingConfig(**{k: v for k, v in wanted.items() if k in known}),
    )  # fmt: skip
    try:
        if hasattr(manager, "warmup"):  # its graphs, in versions that capture some
            manager.warmup()
        manager.start()
        _run(manager, asked[: max(1, len(asked) // 4)])  # warm-up
        return min(_run(manager, asked) for _ in range(repeats)), transformers.__version__
    finally:
        manager.stop(block=True, timeout=10)


def _model(transformers, shape: ModelShape, context_length: int):
    gpu = torch.cuda.is_available()
    family = "Qwen3" if shape.qk_norm else "Llama"
    config = getattr(transformers, f"{family}Config")(
        vocab_size=shape.vocab, hidden_size=shape.width, intermediate_size=shape.ffn, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim,
        max_position_embeddings=context_length, tie_word_embeddings=shape.tied,
    )  # fmt: skip
    with torch.device("cuda" if gpu else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16 if gpu else torch.float32, attn_implementation="sdpa"
        )
    return model.eval()


def _run(manager, asked: Sequence[Asked]) -> float:
    """Seconds from the first request to the last answer."""
    start = time.perf_counter()
    lengths = {manager.add_request(prompt, max_new_tokens=output): output for prompt, output, _ in asked}
    while lengths:
        result = manager.get_result(timeout=1)
        if time.perf_counter() - start > TIMEOUT:
            raise RuntimeError(f"transformers had not answered {len(lengths)} requests after {TIMEOUT:.0f} s")
        if result is None:
            if not manager.is_running():
                raise RuntimeError("transformers' generation thread has ended")
            continue
        if not result.is_finished():
            continue
        if result.error is not None or len(result.generated_tokens) != lengths.pop(result.request_id):
            raise RuntimeError(f"transformers says {len(result.generated_tokens)} tokens, {result.error or 'too few'}")
    return time.perf_counter() - start
