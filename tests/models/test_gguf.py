"""GGUF files: written by llama.cpp's own package and read back; and what is refused, how."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.quants import dequantize, quantize

from llmsys.models import load_model
from llmsys.models.checkpoints.gguf import dequantise


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q4_1, Type.Q5_1, Type.Q8_0])
@pytest.mark.parametrize("rows", [1, 7, 4099])  # one more than is unpacked at a time
def test_dequantise_is_ggufs(kind, rows):
    packed = quantize(np.random.default_rng(0).standard_normal((rows, 32), dtype=np.float32), kind)
    got = dequantise(torch.from_numpy(packed).view(-1), int(kind))
    np.testing.assert_array_equal(got.numpy(), dequantize(packed, kind).reshape(-1))


@pytest.mark.parametrize(
    "dtype, kind", [(torch.float32, Type.F32), (torch.float16, Type.F16), (torch.bfloat16, Type.BF16)]
)
def test_floats_are_taken_as_they_are(dtype, kind):
    x = torch.randn(33).to(dtype)
    assert torch.equal(dequantise(x.view(torch.uint8), int(kind)), x)


def permuted(weight, heads):
    """The order of rows that llama.cpp's converter gives q and k of a Llama: (H, 2, D/2) becomes (H, D/2, 2)."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, model, architecture="llama", *, change=None, rope=None, pattern="gpt-2", merges=(), leave_out=()):
    """transformers' tiny model as a GGUF file. `change(name, array)` may replace a tensor before it is written."""
    config = model.config
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pattern)
    writer.add_token_list([chr(33 + i) for i in range(config.vocab_size)])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(2)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        if architecture == "llama" and "q_proj" in name:
            array = permuted(array, config.num_attention_heads)
        if architecture == "llama" and "k_proj" in name:
            array = permuted(array, config.num_key_value_heads)
        for theirs, ggufs in names.items():
            name = name.replace(theirs, ggufs)
        if change is not None:
            array = change(name, array)
        if name not in leave_out:
            writer.add_tensor(name, np.ascontiguousarray(array))
    if rope is not None:
        writer.add_tensor("rope_freqs.weight", rope)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_logits_are_transformers_own(tmp_path, write_checkpoint, family):
    theirs = write_checkpoint(tmp_path, family, head_dim=16)
    ours = load_model(write_gguf(tmp_path / "model.gguf", theirs, family))
    tokens = torch.randint(0, 97, (2, 31))
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=2e-4, rtol=1e-4)


def test_a_stretched_context_is_in_a_tensor(tmp_path, write_checkpoint):
    rope = {
        "rope_type": "llama3", "rope_theta": 5e3, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    theirs = write_checkpoint(tmp_path, rope_parameters=rope)
    divisors = np.array(load_model(tmp_path).config.rope_divisors, dtype=np.float32)
    assert divisors.min() == 1 and divisors.max() == 8
    ours = load_model(write_gguf(tmp_path / "model.gguf", theirs, rope=divisors))
    tokens = torch.randint(0, 97, (1, 60))
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=2e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, write_checkpoint):
    return write_checkpoint(tmp_path_factory.mktemp("saved"), num_hidden_layers=1)


class TestRefusals:
    """Each names the file, the thing, and what to do."""

    @pytest.fixture
    def file(self, tmp_path, theirs):
        return write_gguf(tmp_path / "model.gguf", theirs)

    def test_truncated_anywhere(self, file):
        whole = file.read_bytes()
        for size in [*range(1, 200, 7), len(whole) // 20, len(whole) // 2, len(whole) - 400]:
            file.write_bytes(whole[:size])
            with pytest.raises(ValueError, match=r"model.gguf: (not a GGUF file|damaged or truncated|truncated, )"):
                load_model(file)

    def test_a_length_beyond_reason(self, file):
        data = bytearray(file.read_bytes())
        data[24:32] = b"\xff" * 8  # the length of the first key
        file.write_bytes(data)
        with pytest.raises(ValueError, match="damaged or truncated"):
            load_model(file)

    def test_other_architecture(self, tmp_path, theirs):
        with pytest.raises(ValueError, match="architecture is 'gemma'; load_model knows llama and qwen3"):
            load_model(write_gguf(tmp_path / "gemma.gguf", theirs, "gemma"))

    def test_other_pattern(self, tmp_path, theirs):
        with pytest.raises(ValueError, match=r"tokenizer.ggml.pre is 'viking'; known are smollm"):
            load_model(write_gguf(tmp_path / "model.gguf", theirs, pattern="viking"))

    def test_missing_tensor(self, tmp_path, theirs):
        with pytest.raises(ValueError, match=r"the tensor blk.0.ffn_up.weight is missing.*download"):
            load_model(write_gguf(tmp_path / "model.gguf", theirs, leave_out=["blk.0.ffn_up.weight"]))

    def test_wrong_shape(self, tmp_path, theirs):
        def narrow(name, array):
            return array[:, :-1] if name == "blk.0.attn_v.weight" else array

        with pytest.raises(ValueError, match=r"blk.0.attn_v.weight must have shape \(16, 48\).*got \(16, 47\)"):
            load_model(write_gguf(tmp_path / "model.gguf", theirs, change=narrow))

    def test_merges_of_another_vocabulary(self, tmp_path, theirs):
        with pytest.raises(ValueError, match=r"model.gguf: tokenizer.ggml.merges do not go with"):
            load_model(write_gguf(tmp_path / "model.gguf", theirs, merges=["! !"]))
