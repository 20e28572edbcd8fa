"""DeepSeek's model: its sizes, its parts, its settings, and that it trains."""

import math
from dataclasses import replace

import pytest
import torch

from llmsys.cache import NoCache
from llmsys.models import Balance, DeepSeek, load_model, save_model
from llmsys.models.checkpoints.save import config_of
from llmsys.models.checkpoints.settings import Settings
from llmsys.models.deepseek import DEEPSEEK_V2_LITE, DEEPSEEK_V3, SMALL, DeepSeekConfig, Yarn, count_parameters
from llmsys.models.deepseek.layouts import read_config
from llmsys.models.modules import Linear
from llmsys.models.shapes import SHAPES, shape_of
from llmsys.moe import RouterConfig
from llmsys.training import Corpus, TrainConfig, load_checkpoint, train
from tests.models.deepseek.conftest import theirs
from tests.training.conftest import make_texts, make_tokenizer

CONFIG = DeepSeekConfig(
    name="tiny", vocab_size=258, hidden_size=32, layers=3, heads=4, head_size=4, mlp_size=48, context_length=64,
    router=RouterConfig(8, 2, "sigmoid", bias=True, groups=2, kept_groups=1), expert_size=16, shared_size=16,
    dense_layers=(0,), latent_size=12, nope_size=6, value_size=5, query_latent_size=10,
)  # fmt: skip
SETTINGS = TrainConfig(steps=6, batch=3, context=17, learning_rate=3e-3, evaluate_every=50, evaluate_batches=1)


def tiny(**options) -> DeepSeek:
    torch.manual_seed(0)
    return DeepSeek(CONFIG, make_tokenizer(), **options).requires_grad_(False)


class TestPublishedSizes:
    def test_v3_has_as_many_parameters_as_published_and_keeps_70_272_bytes_a_token(self):
        found = count_parameters(DEEPSEEK_V3)
        assert (found.total, found.router_biases) == (671_026_404_352, 14_848)
        assert found.active == 37_552_282_624 and found.active - found.embedding == 36_625_603_584
        with torch.device("meta"):
            spec = DeepSeek(DEEPSEEK_V3).bfloat16().cache_spec()
        assert spec.bytes_per_token == 70_272 and (spec.layers[0].Dk, spec.layers[0].Dv) == (576, 512)
        assert DEEPSEEK_V3.scale == pytest.approx((0.1 * math.log(40) + 1) ** 2 / math.sqrt(192))

    @pytest.mark.parametrize("config", [DEEPSEEK_V2_LITE, replace(DEEPSEEK_V3, layers=5)])
    def test_as_many_as_transformers_counts(self, config):
        transformers = pytest.importorskip("transformers")
        settings = config_of(config)
        name = settings["architectures"][0].removesuffix("ForCausalLM")
        with torch.device("meta"):
            other = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**settings))
        assert count_parameters(config).total == sum(weight.numel() for weight in other.parameters())

    @pytest.mark.parametrize(
        ("config", "family", "own"),
        [
            (
                DEEPSEEK_V3,
                "deepseek_v3",
                dict(
                    vocab_size=129280, hidden_size=7168, intermediate_size=18432, moe_intermediate_size=2048,
                    num_hidden_layers=61, num_attention_heads=128, num_key_value_heads=128, n_shared_experts=1,
                    n_routed_experts=256, num_experts_per_tok=8, routed_scaling_factor=2.5, q_lora_rank=1536,
                    topk_method="noaux_tc", n_group=8, topk_group=4, norm_topk_prob=True, scoring_func="sigmoid",
                    first_k_dense_replace=3, num_nextn_predict_layers=1, mscale=1.0,
                ),
            ),
            (
                DEEPSEEK_V2_LITE,
                "deepseek_v2",
                dict(
                    vocab_size=102400, hidden_size=2048, intermediate_size=10944, moe_intermediate_size=1408,
                    num_hidden_layers=27, num_attention_heads=16, num_key_value_heads=16, n_shared_experts=2,
                    n_routed_experts=64, num_experts_per_tok=6, routed_scaling_factor=1.0, q_lora_rank=None,
                    topk_method="greedy", n_group=1, topk_group=1, norm_topk_prob=False, scoring_func="softmax",
                    first_k_dense_replace=1, mscale=0.707,
                ),
            ),
        ],
        ids=["V3", "V2-Lite"],
    )  # fmt: skip
    def test_a_constant_is_what_its_published_settings_say(self, config, family, own):
        mscale = own.pop("mscale")
        settings = own | dict(
            kv_lora_rank=512, qk_rope_head_dim=64, v_head_dim=128, qk_nope_head_dim=128, moe_layer_freq=1, ep_size=1,
            hidden_act="silu", max_position_embeddings=163840, rms_norm_eps=1e-6, rope_theta=10000,
            attention_bias=False, aux_loss_alpha=0.001, seq_aux=True, tie_word_embeddings=False,
            rope_scaling=dict(
                type="yarn", factor=40, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1,
                mscale=mscale, mscale_all_dim=mscale,
            ),
        )  # fmt: skip
        assert read_config(Settings(settings, "config.json"), family, config.name, False) == config

    def test_its_shape_is_the_known_one_and_where_there_are_no_words_for_one_it_is_refused(self):
        shape = shape_of(DEEPSEEK_V3)
        assert replace(shape, source="") == replace(SHAPES["DeepSeek-V3"], source="")
        assert shape.parameters == 671_026_404_352 + 14_848
        with pytest.raises(ValueError, match="query_latent_size"):
            shape_of(DEEPSEEK_V2_LITE)

    def test_the_small_one_has_tens_of_millions(self):
        assert 10**7 < count_parameters(SMALL).total < 10**8


def test_parts_of_a_model_one_after_the_other_are_the_model(tmp_path):
    theirs("v3").save_pretrained(tmp_path)
    whole = load_model(tmp_path)
    tokens = torch.randint(3, 97, (2, 11))
    x = tokens
    for layers in (range(0, 1), range(1, 3)):
        part = load_model(tmp_path, layers=layers)
        assert not part.is_whole and [each.layer for each in part.cache_spec().layers] == list(layers)
        x = part(x)
    assert torch.equal(x, whole(tokens))
    entering = whole.hidden(tokens, taps=[1])[1][0]
    assert torch.equal(entering, load_model(tmp_path, layers=range(0, 1))(tokens))


def test_every_matrix_is_the_factorys_and_half_of_the_heads_are_half_of_the_attention():
    """As on two ranks: queries and the latent's expansion split by heads, the output by columns, and summed."""
    model, made = tiny(), []

    def factory(inputs, outputs, sections=None, *, name):
        made.append(name)
        return Linear(inputs, outputs, sections, name=name)

    tiny(linear=factory)
    names = "query_down query_up latent_down latent_up output".split()
    assert {f"layers.1.{name}" for name in names} | {"layers.0.gate_up", "layers.1.moe.shared.down", "head"} <= set(
        made
    )

    layer, halves = model.layers[0], [tiny().layers[0] for _ in range(2)]
    for rank, half in enumerate(halves):
        half.query_up.weight.data = layer.query_up.weight.chunk(2)[rank]
        half.latent_up.weight.data = layer.latent_up.weight.chunk(2)[rank]
        half.output.weight.data = layer.output.weight.chunk(2, dim=1)[rank]
    backend = NoCache(spec=model.cache_spec())
    x, turn, _, batch = model.begin(torch.randint(0, 258, (2, 9)), backend, None)
    for form in ("naive", "absorbed"):
        for each in (layer, *halves):
            each.form = form
        summed = sum(half.attention(x, turn, backend, batch) for half in halves)
        torch.testing.assert_close(summed, layer.attention(x, turn, backend, batch))


def test_both_forms_have_the_same_gradients():
    tokens, gradients = torch.randint(0, 258, (2, 13)), []
    for form in ("auto", "absorbed"):
        model = tiny(latent=form).double().requires_grad_(True)
        step = model.training_step(tokens, NoCache(spec=model.cache_spec()))
        step.loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and any("latent_up" in name for name in gradients[0])
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name])


def test_it_trains_its_biases_move_and_a_checkpoint_brings_all_of_it_back(tmp_path):
    corpus = Corpus.from_texts(make_texts(), make_tokenizer())
    model = tiny(balance=Balance(alpha=1e-2, rate=0.01))
    run = train(model, corpus, replace(SETTINGS, steps=25), out=tmp_path)
    assert run.losses[-1] < run.losses[0] - 0.3 and run.steps[0].terms["balance"] > 0
    assert all(moe.router.bias.abs().max() > 0 for moe in model.mixtures.values())
    again = tiny()
    load_checkpoint(run.checkpoint, again)
    loaded = load_model(run.checkpoint)
    for other in (again, loaded):
        for name, x in model.state_dict().items():
            assert torch.equal(x, other.state_dict()[name]), name


def test_yarn_leaves_fast_pairs_alone_and_divides_slow_ones():
    yarn = Yarn(4.0, 32, beta_fast=6.0, beta_slow=0.5)
    divisors = yarn.divisors(64, 100.0)
    assert divisors[0] == 1 and divisors[-1] == 4 and list(divisors) == sorted(divisors)
    assert Yarn(1.0, 32).divisors(8, 1e4) == (1.0,) * 4 and Yarn(1.0, 32).of_turning == 1
    assert Yarn(40.0, 4096, mscale=0.707, mscale_all_dim=0.707).of_turning == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(latent_size=0), "latent_size must be at least 1"),
        (dict(query_latent_size=0), "query_latent_size must be at least 1, or None"),
        (dict(head_size=5), "head_size must be even"),
        (dict(qk_norm=True), "qk_norm must be False"),
        (dict(yarn=Yarn(2.0, 32), rope_divisors=(1.0, 2.0)), "yarn and rope_divisors cannot both"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        replace(CONFIG, **change)


def test_an_unknown_form_or_a_stretch_that_stretches_nothing_is_refused():
    with pytest.raises(ValueError, match="latent must be one of auto, naive, absorbed, got 'both'"):
        tiny(latent="both")
    for arguments, named in [
        ((0.5, 32), "at least 1"),
        ((2.0, 32, 1.0, 2.0), "beta_fast"),
        ((2.0, 8, 32, 1, -1), "mscale"),
    ]:
        with pytest.raises(ValueError, match=named):
            Yarn(*arguments)


def test_what_transformers_has_no_words_for_is_not_saved(tmp_path):
    config = replace(CONFIG, router=RouterConfig(8, 2, normalise=True))
    with pytest.raises(ValueError, match="config must be V3's"):
        save_model(DeepSeek(config), tmp_path / "there")
    assert not (tmp_path / "there").exists()
