"""scripts/evaluate_checkpoint.py: what it writes, which item vectors it takes, and what it says about bad input."""

import json
import shutil
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from processes import python
from safetensors.torch import load_file, save_file

from jepa4rec.baselines.sasrec import SasRec
from jepa4rec.datasets_builders import contract
from jepa4rec.evaluation.metrics.seqrec_ranking.ranking_metrics import ranking_metrics
from jepa4rec.evaluation.ranking import rank_scores
from jepa4rec.evaluation.scorers import ItemMeanScorer, SequenceScorer
from jepa4rec.modeling_jepa4rec import (
    Jepa4RecForPreTraining,
    Jepa4RecForSequentialRecommendation,
    Jepa4RecModel,
)
from jepa4rec.scripts import evaluate_checkpoint
from jepa4rec.serving.encoding_seqrec import encode_items
from jepa4rec.serving.whitening_seqrec import CATALOGUE_PRIOR, Whitening
from jepa4rec.tokenization_itemsent import ItemSentTokenizer

pytestmark = pytest.mark.slow("runs the command in processes")

SCRIPT = ROOT / "scripts" / "evaluate_checkpoint.py"
HISTORIES = [[0, 1, 2, 3], [5, 6, 7], [8, 9, 10, 11, 4], [1, 0, 1], [2, 3, 2, 3, 0]]


def make_tables(items, histories):
    ids = pa.array([f"i{row}" for row in range(len(items))])
    table = pa.table({"item_id": ids} | {name: [item[name] for item in items] for name in items[0]})
    users = pa.array([f"u{row}" for row in range(len(histories))])
    return table, pa.table({"user_id": users, "items": pa.array(histories, pa.list_(pa.int32()))})


@pytest.fixture
def dataset_dir(tmp_path, tiny_items):
    dataset = contract.make_dataset(*make_tables(tiny_items, HISTORIES), {"name": "tiny", "config": "default"})
    contract.save_dataset(dataset, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def save(tmp_path, tiny_config, tiny_tokenizer):
    """save(Class, **config) -> folder of a new checkpoint of that class."""

    def save_checkpoint(model_class, edit=None, **changes):
        torch.manual_seed(0)
        for name, value in changes.items():
            setattr(tiny_config, name, value)
        model = model_class(tiny_config)
        if edit is not None:
            edit(model)
        folder = tmp_path / f"checkpoint-{model_class.__name__}"
        model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return save_checkpoint


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(arguments...) -> the record and the table of ranks that the script wrote."""
    monkeypatch.chdir(tmp_path)

    def evaluate(checkpoint, dataset, *arguments):
        out = tmp_path / "out"
        evaluate_checkpoint.main([str(checkpoint), str(dataset), "--cutoffs", "2", "5", "--out", str(out), *arguments])
        return json.loads((out / "metrics.json").read_text()), pq.read_table(out / "ranks.parquet")

    return evaluate


@pytest.fixture
def refuses(tmp_path, monkeypatch):
    """refuses(message, arguments...): the script ends with that one sentence and writes nothing."""
    monkeypatch.chdir(tmp_path)

    def check(message, *arguments):
        with pytest.raises(SystemExit, match=message) as ended:
            evaluate_checkpoint.main([*map(str, arguments), "--out", str(tmp_path / "out")])
        assert "\n" not in ended.value.code and ended.value.code.startswith("evaluate_checkpoint: ")
        assert not (tmp_path / "out").exists()

    return check


# What it writes


def test_as_a_program_from_another_folder(save, dataset_dir, tmp_path):
    checkpoint = save(Jepa4RecModel)
    command = [python(), str(SCRIPT), checkpoint.name, str(dataset_dir), "--cutoffs", "2", "--out", "result"]
    command += ["--system", "RecFormer"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "result" / "metrics.json").read_text())
    wanted = {"model", "system", "dataset", "config", "fingerprint", "split", "seed", "commit", "command", "hardware"}
    assert wanted | {"metrics", "baselines"} <= record.keys()
    assert (
        record["command"]
        == "python evaluate_checkpoint.py checkpoint-Jepa4RecModel data --cutoffs 2 --out result --system RecFormer"
    )
    assert record["system"] == "RecFormer"
    assert str(tmp_path) not in json.dumps(record)
    assert "| item_transition |" in done.stdout and "wrote result/metrics.json" in done.stdout


def test_ranks_and_metrics_belong_together(save, dataset_dir, run):
    record, ranks = run(save(Jepa4RecModel), dataset_dir)
    assert ranks.column_names == ["user_id", "target", "rank", "official_rank"]
    assert record["official"]["metrics"] == ranking_metrics(ranks["official_rank"].to_numpy(), [2, 5])
    assert record["audit"]["test_targets"] == 5
    assert ranks["user_id"].to_pylist() == ["u0", "u1", "u2", "u3", "u4"]
    assert ranks["target"].to_pylist() == [history[-1] for history in HISTORIES]
    assert record["metrics"] == ranking_metrics(ranks["rank"].to_numpy(), [2, 5])
    assert set(record["baselines"]) == {"popularity", "item_transition", "item_transition_decayed", "tf_idf"}
    assert (record["split"], record["users"], record["items"], record["item_vectors"]) == ("test", 5, 12, "text")


def test_validation_and_excluded_history(save, dataset_dir, run):
    record, ranks = run(save(Jepa4RecModel), dataset_dir, "--split", "validation", "--exclude_history")
    assert ranks["target"].to_pylist() == [history[-2] for history in HISTORIES]
    repeats = [history[-2] in history[:-2] for history in HISTORIES]
    assert np.isinf(ranks["rank"].to_numpy()).tolist() == repeats
    assert record["exclude_history"] and record["split"] == "validation"


# Which vectors it takes


def test_a_pre_training_checkpoint_ranks_as_its_encoder(save, dataset_dir, run, tmp_path):
    checkpoint = save(Jepa4RecForPreTraining)
    _, ranks = run(checkpoint, dataset_dir)
    encoder = Jepa4RecModel.from_pretrained(checkpoint)
    encoder.save_pretrained(tmp_path / "encoder")
    for path in checkpoint.glob("token*"):
        shutil.copy(path, tmp_path / "encoder")
    assert run(tmp_path / "encoder", dataset_dir)[1].equals(ranks)


def test_only_on_its_own_dataset_a_fine_tuned_checkpoint_ranks_with_its_item_matrix(save, dataset_dir, run):
    def nearest_to_item_seven(model):
        model.initialise_items(torch.eye(12, 32))
        model.history_item_vectors.weight.data[:12] = 1000 * torch.eye(12, 32)[7]

    dataset = contract.load_dataset_dir(dataset_dir)
    shape = {"num_items": 12, "history_items": 2}
    own = save(
        Jepa4RecForSequentialRecommendation, nearest_to_item_seven, **shape, catalogue_fingerprint=dataset.fingerprint
    )
    record, ranks = run(own, dataset_dir)
    assert record["item_vectors"] == "matrix" and ranks["rank"].to_pylist()[1] == 1.0  # u1's target is item 7
    other = save(Jepa4RecForSequentialRecommendation, nearest_to_item_seven, **shape, catalogue_fingerprint="another")
    assert run(other, dataset_dir)[0]["item_vectors"] == "text"


def test_the_folder_of_a_run_stands_for_its_checkpoint(save, dataset_dir, run, tmp_path):
    shutil.copytree(save(Jepa4RecModel), tmp_path / "run" / "checkpoint")
    record = run(tmp_path / "run", dataset_dir)[0]
    assert record["model"] == "run/checkpoint" and record["seed"] is None
    (tmp_path / "run" / "metrics.json").write_text('{"seed": 3}', encoding="utf-8")
    assert run(tmp_path / "run", dataset_dir)[0]["seed"] == 3


# Bad input


def test_no_checkpoint(refuses, dataset_dir, tmp_path):
    refuses("neither a folder nor the id of a checkpoint", tmp_path / "nowhere", dataset_dir, "--cutoffs", "2")
    refuses("someone/model is no folder here and cannot be fetched", "someone/model", dataset_dir, "--cutoffs", "2")
    refuses("has no config.json", tmp_path, dataset_dir, "--cutoffs", "2")


def test_a_checkpoint_of_another_kind(refuses, dataset_dir, tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    refuses('is a "bert" checkpoint, not a "jepa4rec" one', tmp_path / "bert", dataset_dir, "--cutoffs", "2")


def test_truncated_weights(refuses, save, dataset_dir):
    weights = save(Jepa4RecModel) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refuses("truncated or corrupt", weights.parent, dataset_dir, "--cutoffs", "2")


def test_weights_that_are_no_numbers(refuses, save, dataset_dir):
    def poison(model):
        model.encoder.layer[1].output.dense.bias.data[3] = float("nan")

    refuses(
        "weights encoder.layer.1.output.dense.bias hold NaN",
        save(Jepa4RecModel, poison),
        dataset_dir,
        "--cutoffs",
        "2",
    )


def test_cutoffs_below_one(refuses, save, dataset_dir):
    refuses("--cutoffs 0 5: each is at least 1", save(Jepa4RecModel), dataset_dir, "--cutoffs", "0", "5")


def test_missing_item_matrix(refuses, save, dataset_dir):
    fingerprint = contract.load_dataset_dir(dataset_dir).fingerprint
    checkpoint = save(Jepa4RecForSequentialRecommendation, num_items=12, catalogue_fingerprint=fingerprint)
    weights = load_file(checkpoint / "model.safetensors")
    del weights["item_matrix.weight"]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    refuses("lacks the weights item_matrix.weight", checkpoint, dataset_dir, "--cutoffs", "2")


def test_a_missing_tokenizer(refuses, save, dataset_dir):
    checkpoint = save(Jepa4RecModel)
    for path in checkpoint.glob("token*"):
        path.unlink()
    refuses("has no tokenizer that loads", checkpoint, dataset_dir, "--cutoffs", "2")


def test_a_baseline_ranks_its_own_dataset_and_no_other(run, refuses, dataset_dir, tmp_path):
    torch.manual_seed(0)
    own = contract.load_dataset_dir(dataset_dir).fingerprint
    shape = {"num_items": 12, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "max_length": 4}
    for name, fingerprint in (("own", own), ("other", "f" * 64)):
        config = SasRec.config_class(**shape, catalogue_fingerprint=fingerprint)
        SasRec(config).save_pretrained(tmp_path / name)
    record, ranks = run(tmp_path / "own", dataset_dir, "--system", "SASRec")
    model = SasRec.from_pretrained(tmp_path / "own").eval()
    histories = [np.array(history[:-1]) for history in HISTORIES]
    targets = [history[-1] for history in HISTORIES]
    assert ranks["rank"].to_pylist() == rank_scores(SequenceScorer(model).score(histories), targets).tolist()
    assert (record["system"], record["item_vectors"], record["tokenizer"]) == ("SASRec", "matrix", None)
    shutil.rmtree(tmp_path / "out")
    cut = ("--cutoffs", "2")
    refuses("is a sasrec trained on the dataset of fingerprint ffffffffffff", tmp_path / "other", dataset_dir, *cut)
    refuses("max_items is for models that read texts", tmp_path / "own", dataset_dir, *cut, "--max_items", "3")


def test_a_missing_dataset(refuses, save, tmp_path):
    refuses("is not a built dataset", save(Jepa4RecModel), tmp_path / "nowhere", "--cutoffs", "2")


def test_a_history_of_items_not_in_the_catalogue(refuses, save, tmp_path, tiny_items):
    tables = make_tables(tiny_items, [[0, 1, 2], [3, 12, 4]])
    info = {"name": "tiny", "fingerprint": contract.fingerprint(*tables)}
    contract.save_dataset(contract.SeqRecDataset(*tables, info), tmp_path / "data")
    message = r"history of user row 1 has item 12, but the catalogue has items 0\.\.11"
    refuses(message, save(Jepa4RecModel), tmp_path / "data", "--cutoffs", "2")


def test_a_cutoff_beyond_the_catalogue_finds_every_target(run, save, dataset_dir):
    record, _ = run(save(Jepa4RecModel), dataset_dir, "--cutoffs", "2", "50")
    assert record["metrics"]["recall@50"] == 1.0 > record["metrics"]["recall@2"]


def test_nobody_left_to_test(refuses, save, tmp_path, tiny_items):
    dataset = contract.make_dataset(*make_tables(tiny_items, [[0, 1]]), {"name": "tiny"})
    contract.save_dataset(dataset, tmp_path / "data")
    refuses("no user is left in the test split", save(Jepa4RecModel), tmp_path / "data", "--cutoffs", "2")


def test_settings_that_cannot_be(refuses, save, dataset_dir):
    checkpoint = save(Jepa4RecModel)
    refuses(
        "max_items is 51, but the model reads at most 50",
        checkpoint,
        dataset_dir,
        "--cutoffs",
        "2",
        "--max_items",
        "51",
    )
    refuses("max_items", checkpoint, dataset_dir, "--cutoffs", "2", "--max_items", "0")
    refuses("--device abacus cannot be used", checkpoint, dataset_dir, "--cutoffs", "2", "--device", "abacus")


def test_what_was_learned_of_histories_serves_items_that_came_later(save, run, refuses, dataset_dir, tmp_path):
    """A projection at its start ranks as the encoder does; another one does not, whatever the catalogue."""

    def turn(model):
        torch.nn.init.orthogonal_(model.history_projection.weight)

    reading = {"num_items": 3, "history_reading": "items", "history_decay": 0.5, "catalogue_fingerprint": "another"}
    checkpoint = save(Jepa4RecForSequentialRecommendation, **reading)
    record, ranks = run(checkpoint, dataset_dir)
    assert (record["item_vectors"], record["history"]) == ("text", "items")
    encoder = Jepa4RecModel.from_pretrained(checkpoint)
    encoder.config.update({"num_items": 0, "history_reading": "text", "catalogue_fingerprint": None})
    encoder.save_pretrained(tmp_path / "encoder")
    ItemSentTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "encoder")
    gap = lambda other: np.abs(np.subtract(other["rank"].to_pylist(), ranks["rank"].to_pylist())).max()  # noqa: E731
    assert gap(run(tmp_path / "encoder", dataset_dir)[1]) <= 1  # of two scores that differ by rounding
    checkpoint = save(Jepa4RecForSequentialRecommendation, edit=turn, **reading)
    assert gap(run(checkpoint, dataset_dir)[1]) > 1
    texts = {"num_items": 3, "history_projection": True, "repeat_items": 2, "catalogue_fingerprint": "another"}
    plain = run(save(Jepa4RecForSequentialRecommendation, **texts), dataset_dir)[1]["rank"].to_pylist()
    turned = run(save(Jepa4RecForSequentialRecommendation, edit=turn, **texts), dataset_dir)[1]["rank"].to_pylist()
    assert plain != turned
    (tmp_path / "out").rename(tmp_path / "before")
    refuses("trained to read histories item by item", checkpoint, dataset_dir, "--history", "text")


def test_vectors_may_be_whitened_by_the_catalogue(save, run, refuses, dataset_dir):
    checkpoint = save(Jepa4RecModel)
    plain, _ = run(checkpoint, dataset_dir, "--history", "items")
    whitened, table = run(checkpoint, dataset_dir, "--history", "items", "--whitening", "0.75")
    assert (plain["whitening"], whitened["whitening"]) == (None, 0.75)
    assert plain["baselines"]["tf_idf"] == whitened["baselines"]["tf_idf"] != plain["baselines"]["popularity"]
    model, tokenizer = Jepa4RecModel.from_pretrained(checkpoint).eval(), ItemSentTokenizer.from_pretrained(checkpoint)
    dataset = contract.load_dataset_dir(dataset_dir)
    vectors = encode_items(model, tokenizer, tokenizer.encode_items(dataset.item_texts()))
    scorer = ItemMeanScorer(Whitening.fit(vectors, 0.75, CATALOGUE_PRIOR)(vectors))
    test = contract.leave_one_out(dataset.sequences).test
    assert table["rank"].to_pylist() == rank_scores(scorer.score(test.histories), test.targets).tolist()


def test_a_history_read_as_text_is_not_whitened_and_its_record_says_so(save, run, dataset_dir):
    plain, _ = run(save(Jepa4RecModel), dataset_dir, "--history", "text")
    told, _ = run(save(Jepa4RecModel, catalogue_whitening=0.75), dataset_dir, "--history", "text")
    assert (told["whitening"], told["metrics"]) == (None, plain["metrics"])


def test_a_whitening_that_cannot_be(refuses, save, dataset_dir):
    checkpoint = save(Jepa4RecModel)
    refuses("add --history items", checkpoint, dataset_dir, "--whitening", "0.75")
    refuses("at most 1", checkpoint, dataset_dir, "--history", "items", "--whitening", "2")


def test_a_history_may_be_read_as_its_items(save, run, dataset_dir):
    """The same item vectors rank, once behind the history's text and once behind the mean of its items."""
    checkpoint = save(Jepa4RecModel)
    as_text, _ = run(checkpoint, dataset_dir)
    as_items, table = run(checkpoint, dataset_dir, "--history", "items")
    assert (as_text["history"], as_items["history"]) == ("text", "items")
    assert as_text["metrics"] != as_items["metrics"]
    model, tokenizer = Jepa4RecModel.from_pretrained(checkpoint).eval(), ItemSentTokenizer.from_pretrained(checkpoint)
    dataset = contract.load_dataset_dir(dataset_dir)
    scorer = ItemMeanScorer(encode_items(model, tokenizer, tokenizer.encode_items(dataset.item_texts())))
    test = contract.leave_one_out(dataset.sequences).test
    assert table["rank"].to_pylist() == rank_scores(scorer.score(test.histories), test.targets).tolist()
