"""config.json <-> ModelConfig: defaults, both rope forms, and every refusal by its exact line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.config import from_hf, read_config, to_hf
from jkv.errors import UserError
from jkv.models.config import LinearScaling, Llama3Scaling, ModelConfig, YarnScaling
from tests.converters.conftest import attempt

BASE = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# The configs of published checkpoints, as their files say it.
R1_LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.43.0.dev0",
    "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
R1_QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
    "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944,
    "max_position_embeddings": 131072, "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 10000,
    "sliding_window": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.44.0", "use_cache": True, "use_mrope": False, "use_sliding_window": False,
    "vocab_size": 152064,
}  # fmt: skip


def test_published_llama():
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 8192)
    expected = ModelConfig(
        "llama", 128256, 4096, 14336, 32, 32, 8, 128, 500000.0, scaling, 1e-5, bos_id=128000, eos_ids=(128001,)
    )
    assert from_hf(R1_LLAMA_8B) == expected


def test_published_qwen():
    expected = ModelConfig(
        "qwen2", 152064, 3584, 18944, 28, 28, 4, 128, 10000.0, qkv_bias=True, bos_id=151643, eos_ids=(151643,)
    )
    assert from_hf(R1_QWEN_7B) == expected


def test_defaults_by_architecture():
    llama = from_hf(BASE)
    assert (llama.head_dim, llama.rope_theta, llama.max_positions, llama.rms_eps) == (16, 10000.0, 2048, 1e-6)
    assert (llama.bos_id, llama.eos_ids, llama.tied_head) == (1, (2,), False)
    assert [llama.qkv_bias, llama.o_bias, llama.mlp_bias, llama.qk_norm] == [False] * 4
    qwen2 = from_hf({**BASE, "model_type": "qwen2"})
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.bos_id, qwen2.eos_ids) == (True, False, None, ())
    qwen3 = from_hf({**BASE, "model_type": "qwen3"})
    assert (qwen3.qk_norm, qwen3.head_dim, qwen3.qkv_bias, qwen3.max_positions) == (True, 128, False, 32768)
    multi_head = {name: value for name, value in BASE.items() if name != "num_key_value_heads"}
    assert from_hf(multi_head).n_kv_heads == 4
    assert from_hf({**BASE, "model_type": "qwen2", "num_key_value_heads": None}).n_kv_heads == 4
    assert from_hf({**BASE, "attention_bias": True}).o_bias
    assert not from_hf({**BASE, "attention_bias": True}).mlp_bias


def test_end_of_sequence_ids():
    assert from_hf({**BASE, "eos_token_id": [7, 5, 7]}).eos_ids == (7, 5)
    assert from_hf({**BASE, "eos_token_id": None}).eos_ids == ()
    assert from_hf({**BASE, "eos_token_id": 3}, {"eos_token_id": [4, 5]}).eos_ids == (4, 5)
    assert from_hf({**BASE, "eos_token_id": 3}, {"eos_token_id": None}).eos_ids == (3,)


def test_generation_config_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [8, 9]}')
    assert read_config(tmp_path).eos_ids == (8, 9)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 100}')
    with pytest.raises(UserError) as error:
        read_config(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/generation_config.json: eos_token_id is 100, expected token ids from 0 to 99 (vocab_size is 100)"
    )


REFUSED = [
    ({"model_type": ...}, "model_type is missing, expected a string"),
    ({"model_type": "gemma2"}, 'model_type is "gemma2", expected one of llama, qwen2, qwen3'),
    (
        {"model_type": "qwen3_moe"},
        'model_type is "qwen3_moe", expected one of llama, qwen2, qwen3; a mixture of experts isn\'t supported',
    ),
    ({"num_experts": 8}, "num_experts is 8, expected none: a mixture of experts isn't supported"),
    (
        {"use_sliding_window": True},
        "use_sliding_window is true, expected false: sliding-window attention isn't supported",
    ),
    (
        {"layer_types": ["full_attention", "sliding_attention"]},
        'layer_types is ["full_attention", "sliding_attention"], expected full_attention for every layer: '
        "no other attention is supported",
    ),
    ({"hidden_act": "gelu"}, 'hidden_act is "gelu", expected silu: no other activation is supported'),
    (
        {"quantization_config": {"bits": 4}},
        'quantization_config is {"bits": 4}, expected none: quantized checkpoints aren\'t supported',
    ),
    (
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        'rope_scaling.type is "dynamic", expected one of default, linear, llama3, yarn',
    ),
    (
        {"rope_parameters": {"rope_type": "longrope"}},
        'rope_parameters.rope_type is "longrope", expected one of default, linear, llama3, yarn',
    ),
    (
        {"partial_rotary_factor": 0.5},
        "partial_rotary_factor is 0.5, expected 1 (rotating a part of the head isn't supported)",
    ),
    (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
        "rope_parameters.partial_rotary_factor is 0.25, expected 1 (rotating a part of the head isn't supported)",
    ),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing, expected a positive number"),
    ({"rope_scaling": {"type": "linear", "factor": "2"}}, 'rope_scaling.factor is "2", expected a positive number'),
    ({"rope_scaling": [2]}, "rope_scaling is [2], expected an object or null"),
    (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}},
        "rope_scaling.high_freq_factor is 1, expected more than low_freq_factor (4)",
    ),
    (
        {"rope_scaling": {"rope_type": "yarn", "factor": 8, "beta_fast": 1, "beta_slow": 32}},
        "rope_scaling.beta_fast is 1, expected at least beta_slow (32)",
    ),
    ({"rope_theta": 0}, "rope_theta is 0, expected a positive number"),
    ({"rope_theta": 0.5}, "rope_theta is 0.5, expected a number above 1"),
    ({"hidden_size": ...}, "hidden_size is missing, expected an integer from 1 to 2147483647"),
    ({"hidden_size": "64"}, 'hidden_size is "64", expected an integer from 1 to 2147483647'),
    ({"hidden_size": 64.0}, "hidden_size is 64.0, expected an integer from 1 to 2147483647"),
    ({"vocab_size": True}, "vocab_size is true, expected an integer from 1 to 2147483647"),
    ({"vocab_size": -1}, "vocab_size is -1, expected an integer from 1 to 2147483647"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected an integer from 1 to 4096"),
    ({"intermediate_size": None}, "intermediate_size is null, expected an integer from 1 to 2147483647"),
    ({"hidden_size": 66}, "hidden_size is 66, expected a multiple of num_attention_heads (4), as head_dim isn't given"),
    ({"num_key_value_heads": 3}, "4 query heads can't be shared by 3 KV heads"),
    ({"head_dim": 15}, "head_dim 15 is odd; rotary embedding turns pairs"),
    ({"tie_word_embeddings": "no"}, 'tie_word_embeddings is "no", expected true or false'),
    ({"rms_norm_eps": 0}, "rms_norm_eps is 0, expected a positive number"),
    ({"eos_token_id": [2, "</s>"]}, 'eos_token_id is [2, "</s>"], expected token ids from 0 to 99 (vocab_size is 100)'),
    ({"bos_token_id": [1, 2]}, "bos_token_id is [1, 2], expected one token id or null"),
]


@pytest.mark.parametrize(("changes", "line"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused(changes, line):
    data = {name: value for name, value in {**BASE, **changes}.items() if value is not ...}
    with pytest.raises(UserError) as error:
        from_hf(data)
    assert str(error.value) == f"config.json: {line}"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "isn't JSON (Expecting value: line 1 column 1 (char 0))"),
        (b'{"model_type": ', "isn't JSON (Expecting value: line 1 column 16 (char 15))"),
        (b"[1]", "holds a list, expected a JSON object"),
        (b"\xff\xfe{}", "isn't JSON ("),
        (b"[" * 100_000, "isn't JSON ("),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "isn't JSON ("),
    ],
)
def test_config_that_is_not_json(content, reason, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_config(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/config.json: {reason}")
    assert "\n" not in str(error.value)


def test_no_config(tmp_path):
    with pytest.raises(UserError) as error:
        read_config(tmp_path)
    assert str(error.value) == f"{tmp_path}: config.json isn't there; give a Hugging Face model directory"
    with pytest.raises(UserError, match="nowhere: no such directory"):
        read_config(tmp_path / "nowhere")


positive = st.floats(1.0, 1e6, allow_nan=False)
lengths = st.integers(1, 1 << 20)
scalings = st.one_of(
    st.none(),
    st.builds(LinearScaling, positive),
    st.builds(lambda f, low, width, o: Llama3Scaling(f, low, low + width, o), positive, positive, positive, lengths),
    st.builds(
        lambda f, o, slow, width, a, truncate: YarnScaling(f, o, slow + width, slow, a, truncate),
        positive, lengths, positive, positive, positive, st.booleans(),
    ),
)  # fmt: skip


@st.composite
def fields(draw):  # not ModelConfigs: their type checks draw random numbers, which a strategy mustn't
    architecture = draw(st.sampled_from(["llama", "qwen2", "qwen3"]))
    n_kv, group, head_dim = draw(st.integers(1, 9)), draw(st.integers(1, 9)), 2 * draw(st.integers(1, 99))
    vocab = draw(st.integers(3, 1 << 20))
    ids = st.integers(0, vocab - 1)
    bias = draw(st.booleans())
    return {
        "architecture": architecture,
        "vocab_size": vocab,
        "d_model": n_kv * group * draw(st.integers(1, 64)),
        "d_ff": draw(st.integers(1, 1 << 20)),
        "n_layers": draw(st.integers(1, 4096)),
        "n_heads": n_kv * group,
        "n_kv_heads": n_kv,
        "head_dim": head_dim,
        "rope_theta": draw(st.floats(1.5, 1e9)),
        "rope_scaling": draw(scalings),
        "rms_eps": draw(st.floats(1e-9, 1e-2)),
        "qkv_bias": bias or architecture == "qwen2",
        "o_bias": bias and architecture != "qwen2",
        "mlp_bias": architecture == "llama" and draw(st.booleans()),
        "qk_norm": architecture == "qwen3",
        "tied_head": draw(st.booleans()),
        "max_positions": draw(lengths),
        "bos_id": draw(st.none() | ids),
        "eos_ids": tuple(draw(st.lists(ids, max_size=4, unique=True))),
    }


@given(fields())
def test_round_trip(values):
    config = ModelConfig(**values)
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config


names = st.text('a_\n"é', max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


all_names = [*R1_LLAMA_8B, *R1_QWEN_7B, "rope_parameters", "head_dim", "layer_types", "num_experts"]


@given(st.dictionaries(st.sampled_from(all_names), json_values, max_size=3))
def test_any_value_is_read_or_refused_in_one_line(changes):
    line = attempt(from_hf, {**R1_LLAMA_8B, **changes})
    assert "\n" not in line
    assert line == "" or line.startswith("config.json: ")


rope_names = ["rope_type", "type", "factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim",
              "truncate", "original_max_position_embeddings", "low_freq_factor", "rope_theta"]  # fmt: skip


rope_kinds = st.sampled_from(["yarn", "llama3", "linear"])


@given(rope_kinds, st.dictionaries(st.sampled_from(rope_names), json_values, max_size=3))
def test_any_rope_value_is_read_or_refused_in_one_line(kind, changes):
    scaling = {**R1_LLAMA_8B["rope_scaling"], "rope_type": kind, **changes}
    assert "\n" not in attempt(from_hf, {**R1_LLAMA_8B, "rope_scaling": scaling})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"qkv_bias": True}, "a Hugging Face llama config can't express qkv_bias=True, o_bias=False, mlp_bias=False"),
        ({"qk_norm": True}, "a Hugging Face llama config can't express qk_norm=True"),
        ({"d_model": 66}, "transformers refuses a llama of d_model 66 with 4 heads"),
    ],
)
def test_what_hugging_face_cannot_say(changes, line):
    config = {**{name: getattr(from_hf(BASE), name) for name in ModelConfig.__dataclass_fields__}, **changes}
    with pytest.raises(UserError) as error:
        to_hf(ModelConfig(**config))
    assert str(error.value) == line
