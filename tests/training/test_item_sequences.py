"""Sequences of items: what is compared in the loss, where datasets are whitened each by its own items."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY_ITEMS

from jepa4rec.losses_seqrec import item_sequence_loss
from jepa4rec.modeling_seqrec import RECENCY_DECAY
from jepa4rec.serving.encoding_seqrec import encode_items
from jepa4rec.serving.whitening_seqrec import CATALOGUE_PRIOR, Whitening
from jepa4rec.training.data import Corpus
from jepa4rec.training.phases.item_sequence import DomainWhitenings, ItemSequenceEncoder, ItemSequencePhase
from jepa4rec.training.phases.phase import Work

SEQUENCES = [[0, 3, 5], [1, 2, 4, 0], [11, 6, 7], [8, 9, 10]]


@pytest.mark.parametrize("domains", [None, [0, 0, 1, 1]])
def test_items_are_whitened_by_those_of_their_own_dataset(tiny_config, tiny_tokenizer, domains):
    """The loss is that of vectors whitened here, by the catalogue's rule, and it teaches the encoder."""
    torch.manual_seed(0)
    tiny_config.hidden_dropout_prob = tiny_config.attention_probs_dropout_prob = 0.0
    model = ItemSequenceEncoder(tiny_config).train()
    corpus = Corpus(TINY_ITEMS, [np.array(row) for row in SEQUENCES], None if domains is None else np.array(domains))
    work = Work(SimpleNamespace(run=SimpleNamespace(seed=1)), None, tiny_tokenizer)
    model.whitenings = DomainWhitenings.fit(model, work, corpus, 0.75)

    batch = [11, 6, 7, 8]
    own = range(12) if domains is None else range(6, 12)
    tokens = tiny_tokenizer.encode_items(TINY_ITEMS)
    vectors = encode_items(model, tiny_tokenizer, tokens)
    white = Whitening.fit(vectors[list(own)], 0.75, CATALOGUE_PRIOR)(vectors[batch])
    places = {"sequences": torch.tensor([[0, 1, 2], [3, 1, -1]]), "next_places": torch.tensor([0, 1, 2])}
    wanted = item_sequence_loss(white, torch.tensor(batch), *places.values(), model.temperature, RECENCY_DECAY)
    output = model(**dict(tiny_tokenizer.batch_items(tokens, batch)), item_ids=torch.tensor(batch), **places)
    assert output.loss.item() == pytest.approx(wanted.item(), abs=1e-4)
    output.loss.backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in model.encoder.parameters())


def test_whitening_asks_for_batches_of_one_dataset():
    with pytest.raises(ValueError, match="whitening is of one dataset at a time: set same_domain to true"):
        ItemSequencePhase(kind="item_sequence", whitening=0.75, same_domain=False)
    with pytest.raises(ValueError, match="whitening must be at least 0 and at most 1, got 2"):
        ItemSequencePhase(kind="item_sequence", whitening=2)
