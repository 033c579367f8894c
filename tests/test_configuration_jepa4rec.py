"""The configuration names the field that is wrong, and one checkpoint serves every auto class."""

import pytest

from jepa4rec.configuration_jepa4rec import Jepa4RecConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pooling", "max"),
        ("attention_window", 63),
        ("attention_window", 0),
        ("num_attention_heads", 7),
        ("position_offset", 512),
        ("position_offset", -1),
        ("type_vocab_size", 2),
        ("max_item_embeddings", 1),
        ("num_items", -1),
        ("hidden_size", "384"),
        ("num_hidden_layers", 0),
        ("intermediate_size", -4),
        ("vocab_size", 0),
        ("hidden_dropout_prob", 1.0),
        ("attention_probs_dropout_prob", -0.1),
        ("attention_probs_dropout_prob", float("nan")),
        ("layer_norm_eps", 0.0),
        ("initializer_range", float("inf")),
        ("hidden_act", "gelo"),
    ],
)
def test_wrong_value_is_an_error_that_names_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        Jepa4RecConfig(**{field: value})


def test_default_shape_is_that_of_minilm():
    config = Jepa4RecConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (384, 6, 1536)
    assert config.max_tokens == 512


def test_positions_that_are_never_read_do_not_count_as_room():
    assert Jepa4RecConfig(max_position_embeddings=4098, position_offset=2).max_tokens == 4096


def test_auto_map_serves_the_encoder_and_pre_training():
    auto_map = Jepa4RecConfig().auto_map
    assert auto_map["AutoModel"] == "modeling_jepa4rec.Jepa4RecModel"
    assert auto_map["AutoModelForPreTraining"] == "modeling_jepa4rec.Jepa4RecForPreTraining"
    auto_map.clear()
    assert Jepa4RecConfig().auto_map, "configurations do not share one mapping"


def test_saved_and_loaded_it_is_the_same(tmp_path):
    config = Jepa4RecConfig(attention_window=64, position_offset=2, pad_token_id=1, pooling="mean", num_items=5)
    config.save_pretrained(tmp_path)
    assert Jepa4RecConfig.from_pretrained(tmp_path).to_dict() == config.to_dict() | {
        "transformers_version": _version()
    }


def _version() -> str:
    import transformers

    return transformers.__version__
