"""pipeline("sequential-recommendation"): a stranger's road to recommendations, from texts and from learned items."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import TINY_ITEMS, WITHOUT_PACKAGE

from jepa4rec.configuration_jepa4rec import Jepa4RecConfig
from jepa4rec.evaluation.ranking import top_k
from jepa4rec.evaluation.scorers import DualEncoderScorer
from jepa4rec.modeling_jepa4rec import Jepa4RecForSequentialRecommendation, Jepa4RecModel
from jepa4rec.serving.pipeline_catalogue import TASK, save_item_ids
from jepa4rec.serving.pipeline_seqrec import SequentialRecommendationPipeline, save_checkpoint_files
from jepa4rec.tokenization_itemsent import ItemSentTokenizer

IDS = [f"p{n}" for n in range(12)]
ITEMS = [{"item_id": item_id, **item} for item_id, item in zip(IDS, TINY_ITEMS, strict=True)]


def make_model(backend, **changes):
    torch.manual_seed(0)
    shape = {"vocab_size": len(backend), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 48, "max_position_embeddings": 256, "pad_token_id": backend.pad_token_id}
    model_class = Jepa4RecForSequentialRecommendation if changes else Jepa4RecModel
    model = model_class(Jepa4RecConfig(initializer_range=0.3, **shape, **changes)).eval()
    if changes:
        with torch.no_grad():
            for table in (model.item_matrix.weight, model.history_item_vectors.weight):
                table[:12] = torch.nn.functional.normalize(torch.randn(12, 32), dim=1)
    return model


@pytest.fixture
def pipe(tiny_backend, tiny_tokenizer):
    """A pipeline around an encoder, the twelve items in its catalogue."""
    made = SequentialRecommendationPipeline(make_model(tiny_backend), tiny_tokenizer, task=TASK)
    made.add_items(ITEMS)
    return made


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory, tiny_backend, tiny_tokenizer):
    """The folder of a fine-tuned checkpoint that knows the twelve items by id."""
    folder = tmp_path_factory.mktemp("fine-tuned")
    save_checkpoint_files(make_model(tiny_backend, num_items=12, history_items=3), tiny_tokenizer, folder)
    save_item_ids(folder, IDS, range(12))
    return folder


def ids(answers):
    return [answer["item_id"] for answer in answers]


def test_recommendations_are_those_of_the_scorer(pipe, tiny_tokenizer, tiny_items):
    scorer = DualEncoderScorer(pipe.model, tiny_tokenizer, tiny_tokenizer.encode_items(tiny_items), progress=False)
    rows, scores = top_k(scorer, [np.array([0, 4])], 5)
    answers = pipe({"history": ["p0", "p4"]}, top_k=5)
    assert ids(answers) == [IDS[row] for row in rows[0]]
    assert [answer["score"] for answer in answers] == pytest.approx(scores[0].tolist(), abs=1e-5)
    assert answers[0]["item"] == TINY_ITEMS[rows[0][0]]


def test_a_history_may_hold_items_never_seen_before(pipe):
    by_id, by_text = pipe({"history": ["p0", "p4"]}), pipe({"history": [TINY_ITEMS[0], TINY_ITEMS[4]]})
    assert ids(by_id) == ids(by_text)
    assert len(pipe({"history": [{"title": "Umbrella, red"}, "p3"]}, top_k=3)) == 3


def test_a_batch_answers_each_history_as_if_alone(pipe):
    rows = [{"history": ["p0"]}, {"history": ["p1", "p2", "p3", {"title": "Kettle"}]}, {"history": ["p9"]}]
    together = pipe(rows, top_k=4)
    for row, answers in zip(rows, together, strict=True):
        alone = pipe(row, top_k=4)
        assert ids(answers) == ids(alone)
        assert [a["score"] for a in answers] == pytest.approx([a["score"] for a in alone], abs=1e-5)


def test_history_and_filter_narrow_the_choice(pipe):
    history = {"history": ["p0", {"item_id": "p5", **TINY_ITEMS[5]}, {"title": "Tent"}]}
    assert not {"p0", "p5"} & set(ids(pipe(history, top_k=10, exclude_history=True)))
    kitchen = pipe(history, top_k=3, filter=lambda item: item["category"] == "Kitchen")
    assert set(ids(kitchen)) == {"p0", "p1", "p4"}
    assert set(ids(pipe(history, top_k=2, filter=["p7", "p8"]))) == {"p7", "p8"}


def test_new_items_are_recommended_at_once_and_removed_ones_never(pipe):
    pipe.add_items([{"item_id": "kettle", "title": "Ceramic teapot", "brand": "Hearth & Vale", "category": "Kitchen"}])
    answers = pipe({"history": [TINY_ITEMS[0]]}, top_k=13)
    scores = {answer["item_id"]: answer["score"] for answer in answers}
    assert scores["kettle"] == pytest.approx(scores["p0"], abs=1e-6)
    pipe.remove_items(["kettle", "p0"])
    assert not {"kettle", "p0"} & set(ids(pipe({"history": [TINY_ITEMS[0]]}, top_k=11)))


def test_an_empty_history_gets_what_is_popular(pipe, tiny_backend, tiny_tokenizer):
    with pytest.raises(ValueError, match="history is empty and no popularity is known"):
        pipe({"history": []})
    made = SequentialRecommendationPipeline(make_model(tiny_backend), tiny_tokenizer, task=TASK)
    made.add_items(ITEMS, popularity=range(12))
    answers = made([{"history": []}, {"history": ["p1"]}], top_k=2)
    assert ids(answers[0]) == ["p11", "p10"] and answers[0][0]["score"] == 11
    assert len(answers[1]) == 2
    with pytest.raises(ValueError, match="popularity is known of 12 items only"):
        made({"history": []}, top_k=13)


def test_a_fine_tuned_checkpoint_recommends_with_its_learned_items(fine_tuned, tiny_tokenizer, tiny_items):
    made = SequentialRecommendationPipeline(
        Jepa4RecForSequentialRecommendation.from_pretrained(fine_tuned), tiny_tokenizer, task=TASK
    )
    made.add_items(ITEMS)
    model, item_tokens = made.model, tiny_tokenizer.encode_items(tiny_items)
    scorer = DualEncoderScorer(model, tiny_tokenizer, item_tokens, model.item_vectors().detach(), progress=False)
    histories = [np.array([0, 4]), np.array([1, 2, 3, 5]), np.array([7])]
    rows, scores = top_k(scorer, histories, 6)
    answers = made([{"history": [IDS[item] for item in history]} for history in histories], top_k=6)
    for own, own_rows, own_scores in zip(answers, rows, scores, strict=True):
        assert ids(own) == [IDS[row] for row in own_rows]
        assert [answer["score"] for answer in own] == pytest.approx(own_scores.tolist(), abs=1e-5)
    assert ids(made({"history": []}, top_k=1)) == ["p11"]  # popularity came with the checkpoint


def test_a_fine_tuned_checkpoint_reads_strangers_by_their_text(fine_tuned, tiny_tokenizer):
    made = SequentialRecommendationPipeline(
        Jepa4RecForSequentialRecommendation.from_pretrained(fine_tuned), tiny_tokenizer, task=TASK
    )
    made.add_items([*ITEMS, {"item_id": "new", "title": "Umbrella, red"}])
    text, model = made.item_vectors([{"title": "Umbrella, red"}])[0], made.model
    known = model.history_item_vectors.weight[2]
    row = made.catalogue.rows(["new"])[0]
    torch.testing.assert_close(made.catalogue.vectors[row], text)
    with torch.no_grad():
        history = made.tokenizer([[TINY_ITEMS[2], {"title": "Umbrella, red"}]], return_tensors="pt")
        read = torch.nn.functional.normalize(model.jepa4rec(**history).pooler_output[0], dim=0)
        slow = model.text_gate * read + model.recency[0] * text + model.recency[1] * known
    slow = torch.nn.functional.normalize(slow, dim=0)
    torch.testing.assert_close(made.user_vectors([["p2", "new"]])[0], slow, rtol=1e-4, atol=1e-5)


def test_learned_items_without_names_are_not_passed_over_in_silence(fine_tuned, tiny_tokenizer, tmp_path, monkeypatch):
    folder, said = shutil.copytree(fine_tuned, tmp_path / "nameless"), []
    (folder / "item_ids.json").unlink()
    monkeypatch.setattr("jepa4rec.serving.pipeline_seqrec.logger.warning", said.append)
    model = Jepa4RecForSequentialRecommendation.from_pretrained(folder)
    made = SequentialRecommendationPipeline(model, tiny_tokenizer, task=TASK)
    assert "has no item_ids.json" in said[0] and len(said) == 1
    made.add_items(ITEMS)
    assert len(made({"history": ["p0"]}, top_k=3)) == 3


def test_the_hash_knows_weights_and_reading(pipe, tiny_backend, tiny_tokenizer):
    same = SequentialRecommendationPipeline(make_model(tiny_backend), tiny_tokenizer, task=TASK)
    assert same.weights_hash == pipe.weights_hash
    other = make_model(tiny_backend)
    other.embeddings.LayerNorm.bias.data[0] += 1e-3
    assert SequentialRecommendationPipeline(other, tiny_tokenizer, task=TASK).weights_hash != pipe.weights_hash
    pooled = make_model(tiny_backend)
    pooled.config.pooling = "mean"
    assert SequentialRecommendationPipeline(pooled, tiny_tokenizer, task=TASK).weights_hash != pipe.weights_hash
    shorter = ItemSentTokenizer.wrap(tiny_tokenizer, max_items=3)
    assert (
        SequentialRecommendationPipeline(make_model(tiny_backend), shorter, task=TASK).weights_hash
        != pipe.weights_hash
    )


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda pipe: pipe({"history": ["p1"]}, top_k=40), "top_k is 40, but the catalogue has 12"),
        (lambda pipe: pipe({"history": ["p1x"]}), "'p1x' is not in the catalogue; did you mean 'p1"),
        (lambda pipe: pipe({"history": [3]}), "ids .text. and attribute dicts, not int"),
        (lambda pipe: pipe({"history": "p1"}), 'Input 0 is not {"history"'),
        (lambda pipe: pipe(["p1"]), 'Input 0 is not {"history"'),
        (lambda pipe: pipe({"history": []}, top_k=-1), "top_k is -1; a whole number"),
        (lambda pipe: pipe({"history": ["p1"]}, top_k="3"), "top_k is '3'; a whole number"),
        (lambda pipe: pipe({"history": ["p1"]}, filter="p1"), "filter is 'p1'; it is a function"),
        (lambda pipe: pipe({"history": ["p1"]}, topk=3), "topk is no parameter"),
        (lambda pipe: pipe({"history": [{"title": " "}]}), "has no text"),
        (lambda pipe: pipe.add_items([{"item_id": "x", "title": ""}]), r"item 0 \(id 'x'\) has no text"),
        (lambda pipe: pipe.add_items([ITEMS[0]]), "'p0' is in the catalogue already"),
        (lambda pipe: pipe.add_items([{"title": "x"}]), "Item 0 has no item_id"),
        (lambda pipe: pipe.add_items(ITEMS[:1], popularity=[1, 2]), "1 items were given with 2 values"),
        (lambda pipe: pipe.remove_items(["nothing"]), "'nothing' is not in the catalogue"),
    ],
)
def test_what_cannot_be_is_one_sentence(pipe, call, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        call(pipe)
    assert "\n" not in str(error.value)
    assert len(pipe.catalogue) == 12


def test_an_empty_catalogue_says_what_to_do(tiny_backend, tiny_tokenizer, tmp_path):
    made = SequentialRecommendationPipeline(make_model(tiny_backend), tiny_tokenizer, task=TASK)
    with pytest.raises(ValueError, match="add_items or load_catalogue first"):
        made({"history": ["p1"]})
    with pytest.raises(ValueError, match="The catalogue is empty"):
        made.save_catalogue(tmp_path / "c")


STRANGER = (
    WITHOUT_PACKAGE
    + """
import json
from transformers import pipeline

items, answers = json.load(open("items.json")), {}
for name in ("encoder", "fine-tuned"):
    pipe = pipeline("sequential-recommendation", model=name, trust_remote_code=True)
    pipe.add_items(items)
    pipe.save_catalogue(name + "-catalogue")
    again = pipeline("sequential-recommendation", model=name, trust_remote_code=True)
    again.load_catalogue(name + "-catalogue")
    answers[name] = [p({"history": ["p0", {"title": "Tent"}]}, top_k=3) for p in (pipe, again)]
    answers[name].append(type(pipe.model).__name__)
try:
    again.load_catalogue("encoder-catalogue")
except ValueError as error:
    answers["refused"] = str(error)
json.dump(answers, open("answers.json", "w"))
"""
)


def test_a_stranger_recommends_from_a_folder(tmp_path, fine_tuned, tiny_backend, tiny_tokenizer):
    encoder = make_model(tiny_backend)
    save_checkpoint_files(encoder, tiny_tokenizer, tmp_path / "encoder")
    shutil.copytree(fine_tuned, tmp_path / "fine-tuned")
    (tmp_path / "items.json").write_text(json.dumps(ITEMS))
    (tmp_path / "stranger.py").write_text(STRANGER)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HOME": str(tmp_path / "hub")}
    environment |= {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "stranger.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads((tmp_path / "answers.json").read_text())
    ours = SequentialRecommendationPipeline(encoder, tiny_tokenizer, task=TASK)
    ours.add_items(ITEMS)
    expected = ours({"history": ["p0", {"title": "Tent"}]}, top_k=3)
    assert ids(answers["encoder"][0]) == ids(expected)
    assert answers["encoder"][0] == answers["encoder"][1]
    assert answers["fine-tuned"][0] == answers["fine-tuned"][1]
    assert answers["fine-tuned"][2] == "Jepa4RecForSequentialRecommendation"
    assert "vectors of other weights" in answers["refused"]
