"""pipeline("sequential-recommendation"): a stranger's road to recommendations, from texts and from learned items."""

import json
import shutil
import sys
import threading
import time

import numpy as np
import pytest
import torch
from conftest import TINY_ITEMS, WITHOUT_PACKAGE
from processes import ask_stranger
from transformers import pipeline

from jepa4rec.configuration_jepa4rec import Jepa4RecConfig
from jepa4rec.datasets_builders import build
from jepa4rec.evaluation.ranking import top_k
from jepa4rec.evaluation.scorers import DualEncoderScorer, make_scorer
from jepa4rec.modeling_jepa4rec import Jepa4RecForSequentialRecommendation, Jepa4RecModel
from jepa4rec.serving.encoding_seqrec import encode_items
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
            for table in [model.item_matrix, getattr(model, "history_item_vectors", model.item_matrix)]:
                table.weight[:12] = torch.nn.functional.normalize(torch.randn(12, 32), dim=1)
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


def test_an_encoder_that_learned_means_of_items_reads_histories_as_such(pipe, tiny_tokenizer, tiny_items, monkeypatch):
    pipe.model.config.history_decay = 0.5
    scorer = make_scorer(pipe.model, tiny_tokenizer, tiny_tokenizer.encode_items(tiny_items), progress=False)
    histories = [np.array([0, 4, 7]), np.array([3])]
    rows, scores = top_k(scorer, histories, 5)
    asked = [{"history": [IDS[item] for item in history]} for history in histories]
    as_texts = pipe([{"history": [TINY_ITEMS[item] for item in history]} for history in histories], top_k=5)
    named = {"history": [{"item_id": "p0", **TINY_ITEMS[5]}]}  # an id of the catalogue beside another text
    strange = pipe({"history": [TINY_ITEMS[5]]}, top_k=5)
    assert ids(pipe(named, top_k=5)) == ids(strange) != ids(pipe({"history": ["p0"]}, top_k=5))
    monkeypatch.setattr(pipe, "_text_vectors", None)  # what the catalogue holds is not encoded again
    for answers, by_text, best, cosines in zip(pipe(asked, top_k=5), as_texts, rows, scores, strict=True):
        assert ids(answers) == ids(by_text) == [IDS[row] for row in best]
        assert [answer["score"] for answer in answers] == pytest.approx(cosines.tolist(), abs=1e-4)


@pytest.mark.parametrize("decay", [None, 0.5])
def test_an_id_alone_in_a_dict_is_that_item_of_the_catalogue(pipe, decay):
    pipe.model.config.history_decay = decay
    assert pipe({"history": [{"item_id": "p0"}, "p4"]}) == pipe({"history": ["p0", "p4"]})
    with pytest.raises(ValueError, match=r"item 0 \(id 'gone'\) has no text"):
        pipe({"history": [{"item_id": "gone"}]})


def test_a_catalogue_is_whitened_by_its_own_items_and_stays_so(tiny_backend, tiny_tokenizer, tiny_items, tmp_path):
    """As evaluation ranks it; by ids, by texts and from a saved folder, and later items move no others."""
    model = make_model(tiny_backend)
    model.config.update({"history_decay": 0.5, "catalogue_whitening": 0.75})
    pipe = SequentialRecommendationPipeline(model, tiny_tokenizer)
    pipe.add_items(ITEMS)
    tokens = tiny_tokenizer.encode_items(tiny_items)
    raw = torch.nn.functional.normalize(encode_items(model, tiny_tokenizer, tokens, progress=False), dim=1)
    assert (pipe.catalogue.vectors - raw).abs().max() > 0.001
    histories = [np.array([0, 4, 7]), np.array([3])]
    rows, scores = top_k(make_scorer(model, tiny_tokenizer, tokens, progress=False), histories, 5)
    asked = [{"history": [IDS[item] for item in history]} for history in histories]
    answers = pipe(asked, top_k=5)
    assert [ids(own) for own in answers] == [[IDS[row] for row in best] for best in rows]
    assert answers[0][0]["score"] == pytest.approx(scores[0][0].item(), abs=1e-4)
    by_text = pipe([{"history": [TINY_ITEMS[item] for item in history]} for history in histories], top_k=5)
    assert [ids(own) for own in by_text] == [ids(own) for own in answers]
    torch.testing.assert_close(pipe.item_vectors(ITEMS[:3]), pipe.catalogue.vectors[:3], atol=1e-5, rtol=0)

    before = pipe.catalogue.vectors.clone()
    pipe.add_items([{"item_id": "new", "title": "Umbrella, red"}])
    assert torch.equal(pipe.catalogue.vectors[: len(before)], before)
    pipe.save_catalogue(tmp_path / "shop")
    again = SequentialRecommendationPipeline(model, tiny_tokenizer)
    again.load_catalogue(tmp_path / "shop")
    assert torch.equal(again.catalogue.vectors, pipe.catalogue.vectors)
    assert again({"history": [{"title": "Umbrella, red"}]}, top_k=1)[0]["item_id"] == "new"
    again.add_items([{"item_id": "newer", "title": "Umbrella, red"}])
    torch.testing.assert_close(again.catalogue.vectors[-1], again.catalogue.vectors[-2], atol=1e-5, rtol=0)


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
    assert len(made({"history": []}, top_k=13)) == 12
    with pytest.raises(ValueError, match="top_k is 13, but 12 items are left"):
        made({"history": []}, top_k=13, strict=True)


def test_a_bad_row_is_named_in_its_place_and_loses_no_other(pipe):
    good = [{"history": [f"p{row % 12}"]} for row in range(40)]
    rows, bad = list(good), {
        3: ({"history": ["gone"]}, "Input 3: Item 'gone' is not in the catalogue"),
        7: ({"history": [{"title": " "}]}, "Input 7: item 0 has no text"),
        8: ({"history": ["p1", {"title": "x"}, {"brand": None}]}, "Input 8: item 2 has no text"),
        20: (None, "Input 20: an input of None is not"),
        21: ({"history": []}, "Input 21: the history is empty and no popularity is known"),
        39: ({"history": [2.5]}, "Input 39: A history holds item ids"),
    }  # fmt: skip
    for place, (row, _) in bad.items():
        rows[place] = row
    answers, expected = pipe(rows, top_k=3), pipe(good, top_k=3)
    for place, answer in enumerate(answers):
        if place in bad:
            assert answer["error"].startswith(bad[place][1]) and "\n" not in answer["error"]
        else:
            assert ids(answer) == ids(expected[place])
    with pytest.raises(ValueError, match="Input 3: Item 'gone'"):
        pipe(rows, top_k=3, strict=True)


@pytest.mark.parametrize("decay", [None, 0.5])
def test_an_item_without_text_is_counted_as_the_history_was_written(pipe, decay):
    pipe.model.config.history_decay = decay
    for item, told in (({"title": " "}, "item 3 has"), ({"item_id": "x", "title": " "}, r"item 3 \(id 'x'\) has")):
        with pytest.raises(ValueError, match=f"^{told} no text"):
            pipe({"history": ["p1", {"title": "tea"}, {"title": "pot"}, item, {"title": "cup"}, "p2"]})


def test_broken_emoji_and_missing_values_are_read(pipe):
    """Half a surrogate pair has no UTF-8, and NaN is what a data frame has for nothing."""
    pipe.add_items([{"item_id": "b", "title": "Green tea \ud83c", "brand": np.nan, "\udc00": "x"}])
    assert pipe.catalogue.items[-1] == {"title": "Green tea ?", "?": "x"}
    assert len(pipe({"history": ["b", {"title": "\ud83c tea"}]}, top_k=3)) == 3
    whole = pipe.item_vectors([{"title": "Grüner Tee 🍵"}, {"title": "Grüner Tee ?"}])
    assert torch.equal(pipe.item_vectors([{"title": "Grüner Tee \ud83c"}])[0], whole[1])


def test_a_data_frames_rows_are_items(pipe):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"item_id": ["a", "b"], "title": ["tea", "pot"]})
    frame["since"] = pandas.to_datetime([None, None])
    pipe.add_items(frame.to_dict("records") + [{"item_id": "c", "title": "cup", "since": pandas.NA}])
    assert pipe.catalogue.items[-3:] == [{"title": "tea"}, {"title": "pot"}, {"title": "cup"}]


def test_what_json_does_not_know_is_kept_out_of_every_answer(pipe, tmp_path):
    inf, nan = float("inf"), float("nan")
    odd = {"title": "Cup", "price": inf, "ratings": [nan, 3.5, -inf], "tags": ("\ud83d", ["x", nan]), "none": None}
    pipe.add_items([{"item_id": "odd", **odd}], popularity=[inf])
    told = {"title": "Cup", "ratings": [3.5], "tags": ["?", ["x"]], "none": None}
    assert pipe.catalogue.items[-1] == told and np.isnan(pipe.catalogue.popularity[-1])
    pipe.catalogue.add(["older"], [{"title": "Cup \ud83d"}], torch.ones(1, 32), None)  # as it was saved before
    pipe.save_catalogue(tmp_path / "shop")
    lines = (tmp_path / "shop" / "items.jsonl").read_text(encoding="utf-8")
    pipe.load_catalogue(tmp_path / "shop")
    answer = pipe({"history": ["p0"]}, top_k=20)
    assert "\\ud83d" in lines and {"title": "Cup ?"} in [own["item"] for own in answer]
    json.dumps(answer, allow_nan=False, ensure_ascii=False).encode()
    with pytest.raises(ValueError, match="Item 1 has the item_id .* half a surrogate pair: give another"):
        pipe.add_items([{"item_id": "x", "title": "Cup"}, {"item_id": "\ud83d", "title": "Cup"}])
    endless = []
    endless.append({"again": endless})
    with pytest.raises(ValueError, match="lists or objects in themselves without end"):
        pipe.add_items([{"item_id": "x", "title": endless}])


def test_objects_and_lists_read_as_a_builder_of_tables_reads_them(pipe, tmp_path):
    """One value of each kind that JSON has, within an object and beside it."""
    kinds = {"id": 1, "name": "Hearth & Vale", "litres": 2.0, "weight": 0.5, "oven": True, "lid": None, "none": {}}
    items = [{"item_id": own, "title": f"{own} teapot"} for own in "ab"]
    items[0] |= {"maker": kinds, "tags": [{"name": "iron"}, {"name": "black"}], "sizes": ["S", ["M", 2.0]]}
    items[1] |= {"details": {"Brand": "Hearth", "Colour": ["Red", "Green"], "at": {"$date": "2024-03-01"}}}
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    (tmp_path / "sales.csv").write_text("user_id,item_id\nu,a\nu,b\n", encoding="utf-8")
    built = build("table", data_files=[tmp_path / "sales.csv", tmp_path / "items.jsonl"])
    first, second = built.item_texts()
    assert first["maker"] == "id 1 name Hearth & Vale litres 2 weight 0.5 oven true"
    assert first["tags"] == "name iron name black" and first["sizes"] == "S M 2"
    assert second["details"] == "Brand Hearth Colour Red Green at 2024-03-01"
    pipe.add_items(items)
    torch.testing.assert_close(pipe.catalogue.vectors[-2:], pipe.item_vectors([first, second]))
    given, as_built = ([{"history": [row]} for row in rows] for rows in (items, [first, second]))
    assert pipe(given) == pipe(as_built)
    pipe.save_catalogue(tmp_path / "shop")
    pipe.load_catalogue(tmp_path / "shop")
    assert pipe.catalogue.items[-2]["maker"] == kinds | {"lid": None}


def test_unknown_ids_can_be_ignored(pipe):
    pipe.remove_items(["p11"])
    assert ids(pipe({"history": ["p11", "p0", "p4"]}, unknown="ignore")) == ids(pipe({"history": ["p0", "p4"]}))
    assert ids(pipe({"history": ["p0"]}, filter=["p3", "p11"], unknown="ignore")) == ["p3"]
    assert len(pipe({"history": ["p0"]}, boosts={"p11": 1}, unknown="ignore")) == 10
    answers = pipe([{"history": ["p11"]}, {"history": ["p1"]}], unknown="ignore")
    assert "popularity" in answers[0]["error"] and len(answers[1]) == 10


def test_fewer_items_are_given_where_fewer_are_left(pipe):
    assert len(pipe({"history": ["p1"]}, top_k=40)) == 12
    assert len(pipe({"history": IDS[:11]}, top_k=2, exclude_history=True)) == 1
    assert pipe({"history": IDS}, exclude_history=True) == []
    assert pipe({"history": ["p1"]}, filter=lambda item: False) == []
    pipe.remove_items(IDS[3:])
    assert len(pipe({"history": ["p1"]})) == 3
    with pytest.raises(ValueError, match="top_k is 10, but 3 items are left"):
        pipe({"history": ["p1"]}, strict=True)
    answers = pipe([{"history": ["p1"]}, {"history": ["p1", "p2"]}], top_k=2, exclude_history=True)
    assert [len(answer) for answer in answers] == [2, 1]


def test_ids_may_be_whole_numbers(tiny_backend, tiny_tokenizer):
    made = SequentialRecommendationPipeline(make_model(tiny_backend), tiny_tokenizer, task=TASK)
    made.add_items([{"item_id": 100 + row, **item} for row, item in enumerate(TINY_ITEMS)])
    by_text, by_number = made({"history": ["100", "104"]}), made({"history": [100, np.int64(104)]})
    assert by_text == by_number == made({"history": np.array([100, 104])})
    assert set(ids(made({"history": [100]}, filter=[101, 102]))) == {"101", "102"}
    assert ids(made({"history": [100]}, boosts={107: 9}, top_k=1)) == ["107"]
    own = made({"history": [{"item_id": 100, "title": "Teapot"}]}, exclude_history=True, top_k=12)
    assert "100" not in ids(own) and len(own) == 11
    made.remove_items([100])
    assert "100" not in made.catalogue.ids


@pytest.mark.parametrize("boost", [10**400, 1e308, -1e308, float("inf"), float("nan"), True, "1"])
def test_a_boost_that_is_no_number_is_refused(pipe, boost):
    with pytest.raises(ValueError, match="The boost of item 'p1' is .*; it is a number, 3e\\+38 at most."):
        pipe({"history": ["p0"]}, boosts={"p1": boost})


def test_boosts_lift_and_bury_items(pipe):
    plain = pipe({"history": ["p0"]}, top_k=12)
    lifted = pipe({"history": ["p0"]}, top_k=12, boosts={plain[-1]["item_id"]: 3, plain[0]["item_id"]: -3})
    assert ids(lifted) == [plain[-1]["item_id"], *ids(plain)[1:-1], plain[0]["item_id"]]
    assert lifted[0]["score"] == pytest.approx(plain[-1]["score"] + 3)
    art = pipe({"history": ["p0"]}, top_k=2, boosts=lambda item: 3 * (item["category"] == "Art"))
    assert {answer["item"]["category"] for answer in art} == {"Art"}


def test_not_more_than_so_many_of_a_brand(pipe, tiny_backend, tiny_tokenizer):
    plain = pipe({"history": ["p8"]}, top_k=12)
    one_each = pipe({"history": ["p8"]}, top_k=12, most_per={"brand": 1})
    brands = [answer["item"]["brand"] for answer in plain]
    assert ids(one_each) == [own["item_id"] for place, own in enumerate(plain) if brands.index(brands[place]) == place]
    both = pipe({"history": ["p8"]}, top_k=12, most_per={"brand": 2, "category": 1})
    categories = [answer["item"]["category"] for answer in both]
    assert len(set(categories)) == len(categories) == 5
    pipe.add_items([{"item_id": f"free{row}", "title": f"Tea {row}"} for row in range(3)])  # of no brand
    free = pipe({"history": ["p8"]}, top_k=15, most_per={"brand": 1})
    assert {f"free{row}" for row in range(3)} < set(ids(free))
    made = SequentialRecommendationPipeline(make_model(tiny_backend), tiny_tokenizer, task=TASK)
    made.add_items(ITEMS, popularity=range(12))
    assert ids(made({"history": []}, top_k=3, most_per={"category": 1})) == ["p11", "p9", "p6"]


def test_a_rule_looks_past_the_best_where_they_are_all_of_one_brand(tiny_backend, tiny_tokenizer):
    made = SequentialRecommendationPipeline(make_model(tiny_backend), tiny_tokenizer, task=TASK)
    made.add_items([{"item_id": f"same{row}", "title": "Ceramic teapot", "brand": "Hearth"} for row in range(100)])
    made.add_items([{"item_id": "other", "title": "Sketch book A5", "brand": "Quill"}])
    found = made({"history": ["same0"]}, top_k=2, most_per={"brand": 1})
    assert found[0]["item"]["brand"] == "Hearth" and found[1]["item_id"] == "other"
    diverse = made({"history": ["same0"]}, top_k=2, most_per={"brand": 1}, diversity=0.5)
    assert diverse[1]["item_id"] == "other"


def test_diversity_is_maximal_marginal_relevance(pipe):
    vectors = dict(zip(IDS, pipe.catalogue.vectors, strict=True))
    user = pipe.user_vectors([["p0", "p4"]])[0]
    chosen = []
    while len(chosen) < 4:
        left = [own for own in IDS if own not in chosen]
        near = {own: max((float(vectors[own] @ vectors[other]) for other in chosen), default=0.0) for own in left}
        chosen.append(max(left, key=lambda own: 0.6 * float(vectors[own] @ user) - 0.4 * near[own]))  # noqa: B023
    diverse = pipe({"history": ["p0", "p4"]}, top_k=4, diversity=0.4)
    assert ids(diverse) == chosen
    assert diverse[0]["score"] == pytest.approx(float(vectors[chosen[0]] @ user), abs=1e-5)
    assert ids(pipe({"history": ["p0", "p4"]}, top_k=4)) != chosen


def test_what_was_asked_of_the_pipeline_holds_for_every_call(tiny_backend, tiny_tokenizer):
    made = SequentialRecommendationPipeline(make_model(tiny_backend), tiny_tokenizer, task=TASK, top_k=2)
    made.add_items(ITEMS)
    assert len(made({"history": ["p0"]})) == 2 and len(made({"history": ["p0"]}, top_k=3)) == 3
    with pytest.raises(ValueError, match="top_k is 0"):
        SequentialRecommendationPipeline(make_model(tiny_backend), tiny_tokenizer, task=TASK, top_k=0)


@pytest.mark.parametrize("changes", [{}, {"num_items": 12, "history_items": 3}])
def test_a_long_history_is_cut_before_it_is_encoded(tiny_backend, tiny_tokenizer, monkeypatch, changes):
    tokenizer = ItemSentTokenizer.wrap(tiny_tokenizer, max_items=10)
    made = SequentialRecommendationPipeline(make_model(tiny_backend, **changes), tokenizer, task=TASK)
    made.add_items(ITEMS)
    newest = IDS[:10]
    encoded, encode = [], ItemSentTokenizer.encode_items

    def spy(self, items, *rest, **more):
        items = list(items)
        encoded.append(len(items))
        return encode(self, items, *rest, **more)

    monkeypatch.setattr(ItemSentTokenizer, "encode_items", spy)
    answer = made({"history": ["p11"] * 100_000 + newest}, exclude_history=True)
    assert max(encoded) == 10 and "p11" not in ids(answer)
    assert ids(made({"history": newest})) == ids(made({"history": ["p11"] * 9 + newest}))


def test_threads_share_a_pipeline_while_items_come_and_go(pipe):
    """Every answer is of one catalogue: what it names it can show, and scores are those of its own vectors."""
    expected = {answer["item_id"]: answer["score"] for answer in pipe({"history": [TINY_ITEMS[0]]}, top_k=12)}
    texts, stop, wrong, answered = dict(zip(IDS, TINY_ITEMS, strict=True)), threading.Event(), [], []

    def ask():
        while not stop.is_set():
            for answer in pipe({"history": [TINY_ITEMS[0]]}, top_k=12):
                answered.append(answer)
                own = answer["item_id"].removeprefix("again-")
                if abs(answer["score"] - expected[own]) > 1e-5 or answer["item"] != texts[own]:
                    wrong.append(answer)

    def change():
        while not stop.is_set():
            pipe.add_items([{**item, "item_id": f"again-{item['item_id']}"} for item in ITEMS])
            pipe.remove_items([f"again-{item['item_id']}" for item in ITEMS])

    threads = [threading.Thread(target=ask) for _ in range(3)] + [threading.Thread(target=change)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    stop.set()
    for thread in threads:
        thread.join()
    assert len(answered) > 50 and not wrong, wrong[:3]


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


@torch.no_grad()
def test_a_fine_tuned_checkpoint_that_reads_items(tiny_backend, tiny_tokenizer, tmp_path):
    reading = {"history_reading": "items", "history_decay": 0.5, "catalogue_whitening": 0.75}
    model = make_model(tiny_backend, num_items=12, **reading)
    tokens = tiny_tokenizer.encode_items(TINY_ITEMS)
    model.initialise_items(encode_items(model, tiny_tokenizer, tokens))
    model.history_projection.weight.normal_()
    save_checkpoint_files(model, tiny_tokenizer, tmp_path)
    save_item_ids(tmp_path, IDS, range(12))
    made = pipeline(TASK, model=str(tmp_path), trust_remote_code=True)
    made.add_items([*ITEMS, {"item_id": "new", "title": "Umbrella, red"}])
    new = torch.nn.functional.normalize(made.item_vectors([{"title": "Umbrella, red"}]), dim=1)[0]
    mean = torch.nn.functional.normalize(new + 0.5 * model.item_matrix.weight[2], dim=0)
    slow = torch.nn.functional.normalize(model.history_projection.weight @ mean, dim=0)
    torch.testing.assert_close(made.user_vectors([["p2", "new"]])[0], slow, rtol=1e-4, atol=1e-5)
    scores = make_scorer(model, tiny_tokenizer, tokens).score([np.array([4, 2])])[0]
    best = [IDS[row] for row in scores.topk(3).indices]
    made.remove_items(["new"])
    assert ids(made({"history": ["p4", "p2"]}, top_k=3)) == best


@torch.no_grad()
@pytest.mark.parametrize("reading", ["text", "items"])
@pytest.mark.parametrize("amounts", [[-9.0, -0.2, 0.1], [3.0, -0.1, 2.0]])
def test_the_pipeline_ranks_what_a_history_holds_as_the_evaluation_does(
    reading, amounts, tiny_backend, tiny_tokenizer, tmp_path, monkeypatch
):
    shape = {"items": {"history_reading": "items", "history_decay": 0.5}, "text": {"history_projection": True}}
    model = make_model(tiny_backend, num_items=12, repeat_items=3, **shape[reading])
    tokens = tiny_tokenizer.encode_items(TINY_ITEMS)
    model.initialise_items(encode_items(model, tiny_tokenizer, tokens))
    model.history_projection.weight.normal_()
    model.repeat_bias.copy_(torch.tensor(amounts))
    save_checkpoint_files(model, tiny_tokenizer, tmp_path)
    save_item_ids(tmp_path, IDS, range(12))
    made = pipeline(TASK, model=str(tmp_path), trust_remote_code=True)
    made.add_items(ITEMS)
    history = np.array([7, 4, 2, 4])  # the fourth newest, 7, is too old
    scores = make_scorer(model, tiny_tokenizer, tokens).score([history])[0]
    plain = torch.nn.functional.normalize(made.user_vectors([[IDS[row] for row in history]]), dim=1)[0]
    plain = model.item_vectors() @ plain
    plain[[4, 2]] += torch.tensor(amounts)[:2]
    torch.testing.assert_close(scores, plain, rtol=1e-4, atol=1e-5)
    best = scores.sort(descending=True)
    told = {"history": [IDS[row] for row in history]}
    for most in (1, 3, 12):
        answers = made(told, top_k=most)
        assert ids(answers) == [IDS[row] for row in best.indices[:most]]
        np.testing.assert_allclose([one["score"] for one in answers], best.values[:most], rtol=1e-4, atol=1e-5)
    left = [row for row in best.indices.tolist() if row not in history]
    assert ids(made(told, top_k=3, exclude_history=True)) == [IDS[row] for row in left[:3]]
    monkeypatch.setattr(sys.modules[type(made).__mro__[1].__module__], "POOL", 1)
    for item_id in IDS:  # whoever else asks
        few, wish = {"history": [item_id]}, {"top_k": 3, "diversity": 0.9}
        assert ids(made([few, told], **wish)[0]) == ids(made(few, **wish))
    some = [IDS[row] for row in (2, 4, 5, 6)]
    assert ids(made(told, top_k=2, filter=some)) == [IDS[row] for row in best.indices.tolist() if IDS[row] in some][:2]


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
        (lambda pipe: pipe({"history": ["p1"]}, top_k=40, strict=True), "top_k is 40, but 12 items are left to give"),
        (lambda pipe: pipe({"history": ["p1x"]}), "'p1x' is not in the catalogue; did you mean 'p1"),
        (lambda pipe: pipe({"history": [3]}), "'3' is not in the catalogue"),
        (
            lambda pipe: pipe({"history": [3.5]}),
            "ids .text or whole numbers. and attribute dicts, not one of type float",
        ),
        (lambda pipe: pipe({"history": [None]}), "attribute dicts, not one of None"),
        (lambda pipe: pipe({"history": [["p1"]]}), "attribute dicts, not one of type list"),
        (lambda pipe: pipe({"history": [{"item_id": ["p1"], "title": "x"}]}), "text or a whole number, not .'p1'."),
        (lambda pipe: pipe({"history": "p1"}), 'a history of type str is not {"history"'),
        (lambda pipe: pipe({}), 'a history of None is not {"history"'),
        (lambda pipe: pipe(["p1"], strict=True), 'Input 0: an input of type str is not {"history"'),
        (lambda pipe: pipe(None), 'An input of None is not {"history"'),
        (lambda pipe: pipe(5), 'An input of type int is not {"history"'),
        (lambda pipe: pipe("p1"), 'An input of type str is not {"history"'),
        (lambda pipe: pipe({"history": ["p1"]}, filter=5), "filter is 5; it is a function"),
        (lambda pipe: pipe({"history": ["p1"]}, filter=["p1", "q"]), "'q' is not in the catalogue"),
        (lambda pipe: pipe({"history": ["p1"]}, top_k=True), "top_k is True; a whole number"),
        (lambda pipe: pipe({"history": ["p1"]}, exclude_history=1), "exclude_history is 1; it is true or false"),
        (lambda pipe: pipe({"history": ["p1"]}, unknown="skip"), 'unknown is \'skip\'; it is "error" or "ignore"'),
        (lambda pipe: pipe({"history": ["p1"]}, boosts=3), "boosts is 3; it is {id: number}"),
        (lambda pipe: pipe({"history": ["p1"]}, boosts={"p1": "x"}), "boost of item 'p1' is 'x'; it is a number"),
        (lambda pipe: pipe({"history": ["p1"]}, boosts={"p1": np.nan}), "boost of item 'p1' is nan"),
        (lambda pipe: pipe({"history": ["p1"]}, boosts={"q": 1}), "'q' is not in the catalogue"),
        (lambda pipe: pipe({"history": ["p1"]}, diversity=2), "diversity is 2; it is a number from 0 to 1"),
        (lambda pipe: pipe({"history": ["p1"]}, diversity="1"), "diversity is '1'; it is a number"),
        (lambda pipe: pipe({"history": ["p1"]}, most_per="brand"), "most_per is 'brand'; it is {attribute: number}"),
        (lambda pipe: pipe({"history": ["p1"]}, most_per={"brand": 0}), "most_per of 'brand' is 0"),
        (lambda pipe: pipe({"history": ["p1"]}, most_per={"brnad": 2}), "which no item .* did you mean 'brand'"),
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


def test_a_model_in_memory_is_used_as_it_is(fine_tuned, tiny_tokenizer):
    """Its heads are those of the checkpoint, its encoder is the very one that was given."""
    encoder = Jepa4RecModel.from_pretrained(fine_tuned)
    with torch.no_grad():
        encoder.embeddings.word_embeddings.weight.mul_(-1)
    made = pipeline(TASK, model=encoder, tokenizer=tiny_tokenizer)
    assert made.model.base_model is encoder
    disk = Jepa4RecForSequentialRecommendation.from_pretrained(fine_tuned)
    assert torch.equal(made.model.item_matrix.weight, disk.item_matrix.weight)
    unchanged = SequentialRecommendationPipeline(disk, tiny_tokenizer, task=TASK)
    items = [{"title": "Umbrella, red"}]
    assert not torch.allclose(made.item_vectors(items), unchanged.item_vectors(items), atol=1e-2)
    with torch.no_grad():
        disk.base_model.load_state_dict(encoder.state_dict())
    assert torch.allclose(made.item_vectors(items), unchanged.item_vectors(items), atol=1e-6)
    assert made.weights_hash == SequentialRecommendationPipeline(disk, tiny_tokenizer, task=TASK).weights_hash


def test_a_model_without_its_tokenizer_is_one_sentence(tiny_backend):
    with pytest.raises(ValueError, match="Jepa4RecModel reads texts: give its tokenizer too"):
        pipeline(TASK, model=make_model(tiny_backend))


CODE = ("pipeline_seqrec", "pipeline_catalogue", "catalogue_seqrec", "encoding_seqrec", "whole_files_seqrec",
        "embedding_seqrec", "modeling_jepa4rec", "modeling_seqrec", "configuration_jepa4rec")  # fmt: skip


def test_every_way_to_save_brings_the_code_that_is_named(fine_tuned, tiny_tokenizer, tmp_path):
    made = pipeline(TASK, model=str(fine_tuned), trust_remote_code=True)
    made.add_items(ITEMS)
    made.save_pretrained(tmp_path / "pipe")
    Jepa4RecModel.from_pretrained(fine_tuned).save_pretrained(tmp_path / "model")
    for name in ("pipe", "model"):
        tiny_tokenizer.save_pretrained(tmp_path / name)
        assert {path.stem for path in (tmp_path / name).glob("*.py")} >= set(CODE), name
        assert json.loads((tmp_path / name / "modules.json").read_text())[0]["type"].startswith("embedding_seqrec.")
        again = pipeline(TASK, model=str(tmp_path / name), trust_remote_code=True)
        again.add_items(ITEMS)
        assert len(again({"history": ["p0"]}, top_k=3)) == 3
    whole = pipeline(TASK, model=str(tmp_path / "pipe"), trust_remote_code=True)
    assert whole.weights_hash == made.weights_hash and whole.known_items == made.known_items


STRANGER = (
    WITHOUT_PACKAGE
    + """
import json, shutil
from transformers import AutoModel, AutoTokenizer, Trainer, TrainingArguments, pipeline

items, answers = json.load(open("items.json")), {}
model = AutoModel.from_pretrained("encoder", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("encoder", trust_remote_code=True)
given = pipeline("sequential-recommendation", model=model, tokenizer=tokenizer)  # the first in this process
given.add_items(items)
answers["given"] = given({"history": ["p0", {"title": "Tent"}]}, top_k=3)
trainer = Trainer(model, TrainingArguments("trained", report_to=[], use_cpu=True), processing_class=tokenizer)
trainer.save_model("trained/checkpoint-1")
for name in ("encoder", "trained/checkpoint-1", "fine-tuned"):
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
shutil.rmtree("encoder")
model.save_pretrained("alone")
answers["named"] = json.load(open("alone/config.json")).get("custom_pipelines")
json.dump(answers, open("answers.json", "w"))
"""
)


@pytest.mark.slow("opens it in a process of a stranger")
def test_a_stranger_recommends_from_a_folder(tmp_path, fine_tuned, tiny_backend, tiny_tokenizer):
    encoder = make_model(tiny_backend)
    save_checkpoint_files(encoder, tiny_tokenizer, tmp_path / "encoder")
    shutil.copytree(fine_tuned, tmp_path / "fine-tuned")
    (tmp_path / "items.json").write_text(json.dumps(ITEMS))
    (tmp_path / "stranger.py").write_text(STRANGER)
    ask_stranger("stranger.py", home=tmp_path)
    answers = json.loads((tmp_path / "answers.json").read_text())
    ours = SequentialRecommendationPipeline(encoder, tiny_tokenizer, task=TASK)
    ours.add_items(ITEMS)
    expected = ours({"history": ["p0", {"title": "Tent"}]}, top_k=3)
    assert ids(answers["encoder"][0]) == ids(expected)
    assert answers["encoder"][0] == answers["encoder"][1] == answers["given"] == answers["trained/checkpoint-1"][0]
    assert answers["fine-tuned"][0] == answers["fine-tuned"][1]
    assert answers["fine-tuned"][2] == "Jepa4RecForSequentialRecommendation"
    assert "vectors of other weights" in answers["refused"]
    assert not answers["named"] and not list((tmp_path / "alone").glob("pipeline_*"))  # its code was gone
