"""Two processes with half of a batch each have the loss and the gradients of one process with the whole batch."""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from processes import python
from tiny_batches import finetuning_batch, pretraining_batch, tiny_config
from torch.nn.parallel import DistributedDataParallel

from jepa4rec.losses_seqrec import (
    FineTuningObjective,
    PreTrainingObjective,
    SentencePairObjective,
    rows_per_process,
    whole_batch_mean,
)
from jepa4rec.modeling_jepa4rec import Jepa4RecForPreTraining, Jepa4RecForSequentialRecommendation
from jepa4rec.training.phases.item_sequence import ItemSequenceEncoder
from jepa4rec.training.phases.pairs import INPUTS, SentencePairModel

pytestmark = pytest.mark.slow("starts several processes")

ITEMS = 9
HALVES = [slice(0, 3), slice(3, None)]  # padded to 13 and 16 tokens
UNEQUAL = [slice(0, 4), slice(4, None)]  # four rows and two


def _pre_training(slices=1, **settings):
    torch.manual_seed(0)
    model = Jepa4RecForPreTraining(tiny_config(initializer_range=0.3, attention_window=4))
    model.objective, model.slices = PreTrainingObjective(**settings), slices
    model.predictor.unmasked_item.data.normal_()
    return model


def _fine_tuning(**settings):
    torch.manual_seed(0)
    config = tiny_config(initializer_range=0.3, attention_window=4, num_items=ITEMS, history_items=3)
    model = Jepa4RecForSequentialRecommendation(config)
    model.objective = FineTuningObjective(**settings)
    return model


def _fine_tuning_batch(rows=slice(None)):
    return finetuning_batch(ITEMS, rows)


def _pairs(**settings):
    torch.manual_seed(0)
    model = SentencePairModel(tiny_config(initializer_range=0.3, attention_window=4, pooling="mean"))
    model.objective, model.slices = SentencePairObjective(**settings), 2
    return model


def _pair_batch(rows=slice(None)):
    batch = pretraining_batch(rows)
    kept = {name: batch[name] for name in INPUTS}
    kept |= {f"positive_{name}": batch[f"next_{name}"] for name in INPUTS}
    return kept | {"pair_ids": batch["next_item_ids"]}


def _item_sequences():
    torch.manual_seed(0)
    model = ItemSequenceEncoder(tiny_config(initializer_range=0.3, attention_window=4, pooling="mean"))
    model.slices = 2
    return model


def _item_sequence_batch(rows=slice(None)):
    """Rows of two or three items; the last two items stand in both halves."""
    texts, whole = pretraining_batch(), [[0, 1, 3], [3, 4], [5, 0, 3], [3, 1, 5], [2, 4], [4, 5, 2]][rows]
    items = sorted({item for row in whole for item in row})
    sequences = torch.full((len(whole), 3), -1)
    for number, row in enumerate(whole):
        sequences[number, : len(row)] = torch.tensor([items.index(item) for item in row])
    longest = texts["attention_mask"][items].sum(1).max()
    return {name: texts[name][items, :longest] for name in INPUTS} | {
        "item_ids": torch.tensor(items),
        "sequences": sequences,
        "next_places": (sequences[:, 1:] >= 0).flatten().nonzero().flatten(),
    }


# name -> (model, batch of some rows, the rows of each process); without duplicates masked, rows 4 and 5 of the second
# process still repeat the items of rows 0 and 1 of the first.
CASES = {
    "pre-training": (_pre_training, pretraining_batch, HALVES),
    "pre-training, unequal rows": (_pre_training, pretraining_batch, UNEQUAL),
    "pre-training, cached gradients": (lambda: _pre_training(slices=2), pretraining_batch, UNEQUAL),
    "pre-training, duplicates kept": (lambda: _pre_training(mask_duplicates=False), pretraining_batch, HALVES),
    "pre-training, target positives, clean histories": (
        lambda: _pre_training(positive="target", contrastive_history="clean"),
        pretraining_batch,
        HALVES,
    ),
    "RecFormer's pre-training": (
        lambda: _pre_training(contrastive_history="clean", mlm_average="sides", map_weight=0.0),
        pretraining_batch,
        UNEQUAL,
    ),
    "ST5's pairs, cached gradients": (_pairs, _pair_batch, UNEQUAL),
    "ST5's pairs, duplicates kept": (lambda: _pairs(mask_duplicates=False), _pair_batch, HALVES),
    "item sequences, cached gradients": (_item_sequences, _item_sequence_batch, UNEQUAL),
    "fine-tuning": (_fine_tuning, _fine_tuning_batch, UNEQUAL),
}


def _gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def _train_step(model, batch, trained):
    out = trained(**batch)
    out.loss.backward()
    return {"loss": out.loss.detach(), "parts": dict(out.loss_parts), "gradients": _gradients(model)}


def _process(rank, folder):
    """One of the two processes: every case, its results in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {"rows": rows_per_process(3 + rank, torch.device("cpu"))}
    results["nothing predicted anywhere"] = whole_batch_mean(torch.zeros(0)).item()
    for name, (make_model, make_batch, rows) in CASES.items():
        model = make_model()
        results[name] = _train_step(model, make_batch(rows[rank]), DistributedDataParallel(model))
    torch.save(results, f"{folder}/results_{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Results of both processes, each of which runs this file."""
    folder = tmp_path_factory.mktemp("two_processes")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    words = [python(), __file__, str(folder)]
    both = [subprocess.Popen([*words, str(rank)], env=environment, stderr=subprocess.PIPE) for rank in range(2)]
    for process in both:
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said.decode()
    return [torch.load(folder / f"results_{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(two_processes, name):
    make_model, make_batch, rows = CASES[name]
    assert make_batch(rows[0])["input_ids"].shape[1] != make_batch(rows[1])["input_ids"].shape[1]
    model = make_model()
    whole = _train_step(model, make_batch(), model)
    for results in two_processes:
        torch.testing.assert_close(results[name], whole, rtol=1e-4, atol=1e-6)


def test_negatives_of_the_other_process_count(two_processes):
    model = _pre_training()
    alone = _train_step(model, pretraining_batch(HALVES[0]), model)
    assert alone["parts"]["contrastive"] < 0.9 * two_processes[0]["pre-training"]["parts"]["contrastive"]


def test_processes_know_each_others_rows(two_processes):
    assert [results["rows"] for results in two_processes] == [[3, 4], [3, 4]]
    assert [results["nothing predicted anywhere"] for results in two_processes] == [0.0, 0.0]


if __name__ == "__main__":
    _process(int(sys.argv[2]), sys.argv[1])
