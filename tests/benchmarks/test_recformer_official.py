"""The comparison with RecFormer's published code finds what it should, told by a stand-in that reads as published."""

import json

import pytest
import torch
from transformers import LongformerConfig, LongformerModel, RobertaTokenizerFast

from jepa4rec.benchmarks import recformer_official
from jepa4rec.datasets_builders import build

pytestmark = pytest.mark.slow("encodes the toy shop twice, twice")


def read_as_published(history: list[dict], words: RobertaTokenizerFast, keeps_empty: bool) -> tuple[list, list, list]:
    """Ids, types and positions, newest item first: 32 tokens of each of three attributes, 1,024 in all."""
    rows = [(words.bos_token_id, 0, 0)]
    for position, item in enumerate(history[::-1][:50], start=1):
        for name, value in list(item.items())[:3]:
            if value or keeps_empty:
                typed = [(token, kind) for kind, text in ((1, name), (2, value)) for token in words.tokenize(text)]
                rows += [(words.convert_tokens_to_ids(token), kind, position) for token, kind in typed[:32]]
    return tuple(map(list, zip(*rows[:1024], strict=True)))


@pytest.mark.parametrize("keeps_empty", [True, False])
def test_what_is_empty_is_compared(tmp_path, monkeypatch, keeps_empty):
    shop, splits = build("toy_shop", shoppers=30), []
    sample = recformer_official.sample_users
    monkeypatch.setattr(recformer_official.datasets_builders, "build", lambda name: shop)
    monkeypatch.setattr(
        recformer_official, "sample_users", lambda *args, **kwargs: splits.append(sample(*args, **kwargs)) or splits[0]
    )

    def stand_in(options, job, folder):
        torch.manual_seed(0)
        config = LongformerConfig(**job["shape"], attention_window=[64] * 2, type_vocab_size=4, initializer_range=0.2)
        weights = LongformerModel(config, add_pooling_layer=False).state_dict()
        weights["embeddings.item_position_embeddings.weight"] = torch.randn(51, config.hidden_size)
        torch.save({f"longformer.{name}": weight for name, weight in weights.items()}, folder / "weights.bin")
        words = RobertaTokenizerFast.from_pretrained(job["tokenizer"])
        histories = [[job["items"][item] for item in history] for history in job["histories"]]
        read = zip(*(read_as_published(history, words, keeps_empty) for history in histories), strict=True)
        answers = recformer_official.answer({**job, "split": splits[0]}, folder / "weights.bin")
        return answers | dict(zip(recformer_official.INPUTS, map(list, read), strict=True))

    monkeypatch.setattr(recformer_official, "ask_peer", stand_in)
    (tmp_path / "recformer").mkdir()
    (tmp_path / "recformer" / "models.py").touch()
    recformer_official.main([str(tmp_path), "--histories", "6", "--out", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())["differences"]
    assert found["input_ids"]["compared"] == 6
    assert all((found[name]["differ"] == 0) == keeps_empty for name in recformer_official.INPUTS)
