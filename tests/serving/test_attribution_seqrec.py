"""Attribution by deletion: exact differences of scores, and a ranking of causes that deletion confirms."""

import numpy as np
import pytest
import torch
from conftest import TINY_ITEMS

from attribution_seqrec import attribute, only_words, without_item, without_word, words_of, words_of_history
from jepa4rec.modeling_jepa4rec import Jepa4RecModel
from jepa4rec.serving.pipeline_catalogue import TASK
from jepa4rec.serving.pipeline_seqrec import SequentialRecommendationPipeline

HISTORY = [TINY_ITEMS[place] for place in (0, 3, 8, 11)]


@pytest.fixture
def pipe(tiny_config, tiny_tokenizer):
    torch.manual_seed(0)
    tiny_config.initializer_range = 0.3
    made = SequentialRecommendationPipeline(Jepa4RecModel(tiny_config).eval(), tiny_tokenizer, task=TASK)
    made.add_items([{"item_id": f"p{place}", **item} for place, item in enumerate(TINY_ITEMS)])
    return made


def texts(item):
    return [str(item[word.attribute])[word.start : word.end] for word in words_of(item)]


def test_words_are_what_a_reader_calls_words():
    item = {"item_id": "B 7", "title": "Men's T-shirt, size 8.5 (blue)", "brand": "Å & Co.", "kind": "緑茶 tea_bag"}
    assert texts(item) == ["Men's", "T-shirt", "size", "8.5", "blue", "Å", "Co", "緑", "茶", "tea", "bag"]


def test_deleting_a_word_leaves_the_rest_as_it_was():
    history = [{"title": "Green tea, loose leaf", "brand": "Leafwell"}, {"title": "Pot"}]
    tea, pot = words_of(history[0])[1], words_of(history[1], 1)[0]
    assert without_word(history, tea) == [{"title": "Green , loose leaf", "brand": "Leafwell"}, {"title": "Pot"}]
    assert without_word(history, pot) == history[:1] == without_item(history, 1)
    assert history[0]["title"] == "Green tea, loose leaf"


def test_kept_words_stay_in_reading_order():
    item = {"item_id": "x", "title": "Green tea, loose leaf", "brand": "Leafwell", "category": "Grocery"}
    words = words_of(item)
    assert only_words(item, [words[5], words[3], words[0]]) == {"title": "Green leaf", "category": "Grocery"}
    assert only_words(item, []) == {}


def test_drops_are_those_of_a_slow_recomputation(pipe):
    targets = pipe.catalogue.vectors[[2, 5]].numpy()
    found = attribute(HISTORY, targets, pipe.user_vectors)

    def score(history):
        return targets.astype(np.float64) @ pipe.user_vectors([history])[0].double().numpy()

    whole = score(HISTORY)
    assert found.scores == pytest.approx(whole, abs=1e-5)
    for place in range(len(HISTORY)):
        assert found.items[:, place] == pytest.approx(whole - score(without_item(HISTORY, place)), abs=1e-5)
    assert len(found.places) == found.words.shape[1] == sum(len(words_of(item)) for item in HISTORY)
    for column, word in enumerate(found.places):
        assert found.words[:, column] == pytest.approx(whole - score(without_word(HISTORY, word)), abs=1e-5)


def test_deleting_the_top_cause_costs_more_than_deleting_the_lowest(pipe):
    targets = pipe.catalogue.vectors.numpy()
    found = attribute(HISTORY, targets, pipe.user_vectors)
    for target in range(len(targets)):
        for drops, delete in ((found.items[target], without_item), (found.words[target], without_word)):
            causes = range(len(HISTORY)) if delete is without_item else found.places
            best, worst = delete(HISTORY, causes[drops.argmax()]), delete(HISTORY, causes[drops.argmin()])
            after = pipe.user_vectors([best, worst]).numpy() @ targets[target]
            assert after[0] < after[1]


def test_one_batch_asks_for_everything(pipe):
    asked = []

    def vectors_of(histories):
        asked.append(len(histories))
        return np.ones((len(histories), 3))

    found = attribute(HISTORY, np.ones((2, 3)), vectors_of)
    assert asked == [1 + len(HISTORY) + len(found.places)]
    assert not found.items.any()


def test_the_only_item_is_compared_with_nothing_at_all():
    seen = []

    def vectors_of(histories):
        seen.extend(histories)
        return np.array([[1.0, 0.0] if history else [0.0, 0.0] for history in histories])

    found = attribute([{"title": "Tea"}], np.array([[0.6, 0.8]]), vectors_of)
    assert [] in seen
    assert found.items.tolist() == [[0.6]] == found.words.tolist()


def test_words_of_the_newest_items_come_first_where_there_are_too_many():
    assert {word.item for word in words_of_history(HISTORY, most=9)} == {2, 3}
    assert len(words_of_history(HISTORY)) == len(words_of_history(HISTORY, most=1000))


def test_an_empty_history_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="The history is empty"):
        attribute([], np.ones((1, 2)), lambda histories: np.ones((len(histories), 2)))
