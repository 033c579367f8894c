"""The pipeline of models that know items by their ids: the baselines, served as any other checkpoint."""

import json

import numpy as np
import pytest
import torch
from processes import ask_stranger
from transformers import pipeline

from jepa4rec.baselines import SEQUENCE_MODELS
from jepa4rec.evaluation.scorers import SequenceScorer
from jepa4rec.modeling_jepa4rec import Jepa4RecModel
from jepa4rec.serving.pipeline_catalogue import IDS_FILE, TASK, save_item_ids
from jepa4rec.serving.pipeline_item_ids import ItemIdPipeline, save_item_checkpoint
from jepa4rec.serving.pipeline_seqrec import save_checkpoint_files
from tests.baselines.test_sequence_baselines import NAMES, make_model
from tests.conftest import WITHOUT_PACKAGE

IDS = [f"sku-{row}" for row in range(12)]
COUNTS = [float(row % 5) for row in range(12)]
HISTORIES = [[3, 1, 4], [5], [9, 2, 6, 5, 3, 5, 8]]

STRANGER = (
    WITHOUT_PACKAGE
    + """
import json, sys
from transformers import pipeline

TASK = "sequential-recommendation"
reading, knowing = (pipeline(TASK, model=folder, trust_remote_code=True) for folder in sys.argv[1:])
reading.add_items([{"item_id": "pot", "title": "Teapot"}, {"item_id": "tea", "title": "Green tea"}])
knowing.add_items([{"item_id": item_id} for item_id in knowing.known_items["rows"]])
found = knowing({"history": ["sku-3", "sku-1"]}, top_k=3)
print(json.dumps([reading({"history": ["pot"]}, top_k=1)[0]["item_id"], [item["item_id"] for item in found]]))
"""
)


def save(folder, name, **overrides):
    model = make_model(name, **overrides)
    save_item_checkpoint(model, folder)
    save_item_ids(folder, IDS, COUNTS)
    return model


def opened(folder) -> ItemIdPipeline:
    """The pipeline by this repository's code, its catalogue all items but in another order than the model's."""
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    pipe = ItemIdPipeline(SEQUENCE_MODELS[model_type].from_pretrained(folder))
    pipe.add_items([{"item_id": item_id, "title": f"Item {item_id}"} for item_id in reversed(IDS)])
    return pipe


def test_a_saved_copy_has_all_that_its_config_names(tmp_path):
    model = save(tmp_path / "one", "sasrec")
    type(model).from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    names = [{path.name for path in (tmp_path / folder).iterdir()} for folder in ("one", "two")]
    assert names[0] == names[1] >= {"pipeline_item_ids.py", "pipeline_catalogue.py", IDS_FILE}
    assert opened(tmp_path / "two").known_items == opened(tmp_path / "one").known_items
    (tmp_path / "two" / "pipeline_item_ids.py").unlink()
    type(model).from_pretrained(tmp_path / "two").save_pretrained(tmp_path / "three")
    assert not json.loads((tmp_path / "three" / "config.json").read_text()).get("custom_pipelines")


@pytest.mark.parametrize(
    ("name", "temperature"), [(n, t) for n in NAMES for t in (0.1, None) if t or n != "hybrid_gru"]
)
def test_it_ranks_as_the_evaluation_does(tmp_path, name, temperature):
    model = save(tmp_path, name, temperature=temperature)
    with torch.no_grad():
        if hasattr(
            model, "item_embeddings"
        ):  # items of different lengths, which cosine and dot product rank differently
            model.item_embeddings.weight[:12] *= torch.linspace(0.5, 3, 12)[:, None]
        if hasattr(model, "again"):
            model.again.copy_(torch.linspace(-0.8, 0.5, len(model.again)))
    save_item_checkpoint(model, tmp_path)
    scores = SequenceScorer(model).score([np.array(history) for history in HISTORIES])
    found = opened(tmp_path)([{"history": [IDS[row] for row in history]} for history in HISTORIES], top_k=12)
    for own, answers in zip(scores, found, strict=True):
        assert [answer["item_id"] for answer in answers] == [IDS[row] for row in own.argsort(descending=True)]
        assert answers[0]["item"]["title"] == f"Item {answers[0]['item_id']}"


@pytest.mark.parametrize(("top_k", "filtered"), [(12, False), (2, False), (3, True)])
def test_a_language_model_has_the_last_word_on_the_best(tmp_path, top_k, filtered):
    model = make_model("llamarec", num_candidates=4)
    model.start_phase("rank")
    save_item_checkpoint(model, tmp_path)
    save_item_ids(tmp_path, IDS, COUNTS)
    allowed = [row for row in range(12) if not filtered or row % 2]
    scores = torch.full((3, 12), -torch.inf)
    scores[:, allowed] = SequenceScorer(make_model("llamarec")).score([np.array(h) for h in HISTORIES])[:, allowed]
    wanted = model.rerank([np.array(history) for history in HISTORIES], scores)
    options = {"filter": [IDS[row] for row in allowed]} if filtered else {}
    asked = [{"history": [IDS[row] for row in history]} for history in HISTORIES]
    for own, answers in zip(wanted, opened(tmp_path)(asked, top_k=top_k, **options), strict=True):
        assert [answer["item_id"] for answer in answers] == [IDS[row] for row in own.argsort(descending=True)[:top_k]]


def test_an_empty_history_gets_what_was_bought_most(tmp_path):
    save(tmp_path, "sasrec")
    found = opened(tmp_path)({"history": []}, top_k=2)
    assert {answer["item_id"] for answer in found} == {"sku-4", "sku-9"} and found[0]["score"] == 4


def test_a_catalogue_belongs_to_its_weights(tmp_path):
    for seed, name in enumerate(("sasrec", "gru4rec")):
        save(tmp_path / name, name)
        opened(tmp_path / name).save_catalogue(tmp_path / f"catalogue{seed}")
    pipe = opened(tmp_path / "sasrec")
    pipe.load_catalogue(tmp_path / "catalogue0")
    with pytest.raises(ValueError, match="vectors of other weights"):
        pipe.load_catalogue(tmp_path / "catalogue1")


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (
            lambda p: p.add_items([{"item_id": "new", "title": "New"}]),
            "Item 'new' is none of the 12 items that SasRec",
        ),
        (lambda p: p({"history": [{"title": "New"}]}), "An item without an item_id is none of the 12 items"),
        (lambda p: p({"history": ["sku-77"]}), "Item 'sku-77' is not in the catalogue; did you mean 'sku-7'"),
        (lambda p: p({"history": ["sku-7"]}, top_k=13, strict=True), "top_k is 13, but 12 items are left"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, ask, sentence):
    save(tmp_path, "sasrec")
    with pytest.raises(ValueError, match=sentence) as caught:
        ask(opened(tmp_path))
    assert "\n" not in str(caught.value)


def test_what_the_model_was_not_trained_on_can_be_ignored(tmp_path):
    save(tmp_path, "sasrec")
    pipe = opened(tmp_path)
    new = [{"item_id": "new", "title": "New"}, {"title": "No id"}, "gone"]
    expected = pipe({"history": ["sku-3", "sku-1"]}, top_k=3)
    assert pipe({"history": ["sku-3", *new, "sku-1"]}, top_k=3, unknown="ignore") == expected
    answers = pipe([{"history": ["sku-3", "sku-1"]}, {"history": new[:1]}], top_k=3)
    assert answers[1]["error"].startswith("Input 1: Item 'new' is none of the 12 items")
    assert [own["item_id"] for own in answers[0]] == [own["item_id"] for own in expected]


def test_without_its_items_ids_a_checkpoint_is_refused(tmp_path):
    save(tmp_path, "sasrec")
    (tmp_path / IDS_FILE).unlink()
    with pytest.raises(ValueError, match=f"has no {IDS_FILE}, which says what items it knows"):
        pipeline(TASK, model=str(tmp_path), trust_remote_code=True)


@pytest.mark.slow("opens it in a process of a stranger")
def test_a_stranger_asks_both_kinds_in_one_process(tmp_path, tiny_config, tiny_tokenizer):
    save_checkpoint_files(Jepa4RecModel(tiny_config), tiny_tokenizer, tmp_path / "encoder")
    save(tmp_path / "sasrec", "sasrec", temperature=0.1)
    said = ask_stranger("-c", STRANGER, tmp_path / "encoder", tmp_path / "sasrec", home=tmp_path)
    told, known = json.loads(said.splitlines()[-1])
    ours = opened(tmp_path / "sasrec")({"history": ["sku-3", "sku-1"]}, top_k=3)
    assert told in ("pot", "tea") and known == [answer["item_id"] for answer in ours]
