"""Studies: each runs end to end on a tiny shop, its parts do what they say, and too small a dataset is refused."""

import json
import shutil
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml

from jepa4rec.datasets_builders.contract import Split, load_dataset_dir, make_dataset, save_dataset
from jepa4rec.evaluation.metrics.significance import mean_with_interval
from jepa4rec.evaluation.ranking import rank_split
from jepa4rec.evaluation.scorers import ItemMeanScorer
from jepa4rec.modeling_jepa4rec import Jepa4RecForPreTraining
from jepa4rec.serving.encoding_seqrec import encode_items
from jepa4rec.studies import (
    RECIPES,
    ablations,
    cold_items,
    history_length,
    low_resource,
    masking_ratio,
    pretraining_domains,
    pretraining_steps,
    revealed_words,
    robustness,
    studying,
    systems,
    text_representation,
    zero_shot,
)
from jepa4rec.studies.measuring import rank_as_texts
from jepa4rec.studies.studying import Study, StudyRecipe, another_dataset, read_variant
from jepa4rec.tokenization_itemsent import ItemSentTokenizer
from jepa4rec.training.masking import word_starts
from jepa4rec.training.phases import KINDS
from jepa4rec.training.recipe import read_recipe
from tests.conftest import ROOT, TINY_ITEMS

pytestmark = pytest.mark.slow("trains what the studies measure")

pytest.importorskip("matplotlib", reason="matplotlib draws the studies' plots")
SHOP = "{name: toy_shop, options: {shoppers: 60}, part: all}"
GRU4REC = [
    f"base={ROOT}/recipes/gru4rec.yaml",
    "model.config.hidden_size=8",
    "phases.0.steps=2",
    "phases.0.batch_size=16",
]
SMALL = {
    "low_resource": (low_resource, {"percents": [50, 100], "min_training_users": 3}),
    "cold_items": (cold_items, {"hold_out": 30.0}),
    "history_length": (history_length, {"edges": [5]}),
    "masking_ratio": (masking_ratio, {"percents": [0, 50]}),
    "revealed_words": (revealed_words, {"percents": [0, 100], "max_items": 3}),
    "robustness": (robustness, {"missing": [50], "noise": [10]}),
    "ablations": (ablations, {"variants": ["without MLM", "without item positions", "without pre-training"]}),
    "systems": (systems, {"systems": {"this recipe": [], "GRU4Rec": GRU4REC}}),
    "pretraining_steps": (pretraining_steps, {"steps": [0, 1]}),
    "pretraining_domains": (pretraining_domains, {"settings": [f"data.pretrain=[{SHOP}, {SHOP}]"]}),
    "text_representation": (text_representation, {"base": "base_st5.yaml"}),
    "zero_shot": (zero_shot, {}),
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """60 users who walk round the twelve items, some longer than others."""
    items = pa.table(
        {"item_id": [str(i) for i in range(12)], **{k: [i[k] for i in TINY_ITEMS] for k in TINY_ITEMS[0]}}
    )
    walks = [[(user + step) % 12 for step in range(5 + user % 4)] for user in range(60)]
    sequences = pa.table({"user_id": [str(u) for u in range(60)], "items": pa.array(walks, pa.list_(pa.int32()))})
    folder = tmp_path_factory.mktemp("data") / "shop"
    save_dataset(make_dataset(items, sequences, {"name": "walks", "config": "tiny"}), folder)
    return folder


@pytest.fixture(scope="module")
def studio(shop, tmp_path_factory):
    """``studio(name, **changes)`` runs a study on the shop and returns what it wrote; tests share trained runs. The
    picture, which takes longest of what is not training, is only drawn where it is asked for."""
    folder = tmp_path_factory.mktemp("studies")
    base = yaml.safe_load((RECIPES / "small.yaml").read_text(encoding="utf-8"))
    base["model"]["config"] |= {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32}
    base["tokenizer"]["vocab_size"] = 120
    for phase in base["phases"]:
        phase |= {"steps": 2, "batch_size": 16}
    (folder / "base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    st5 = yaml.safe_load((ROOT / "recipes" / "st5_finetune.yaml").read_text(encoding="utf-8"))
    st5["model"]["config"] = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    st5["model"]["config"]["projection_size"] = 8
    st5["tokenizer"] |= {"vocab_size": 150, "max_items": 2}
    st5["phases"][0] |= {"steps": 1, "batch_size": 8, "evaluate_every_steps": 1}
    (folder / "base_st5.yaml").write_text(yaml.safe_dump(st5), encoding="utf-8")

    def run(name: str, drawn: bool = False, **changes):
        module, settings = SMALL[name]
        recipe = {"base": "base.yaml", "seeds": [1], "runs_dir": str(folder / "runs"), "min_users": 10}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**recipe, **settings, **changes}), encoding="utf-8")
        out = folder / "results"
        with pytest.MonkeyPatch.context() as patch:
            if not drawn:
                patch.setattr(studying, "draw", lambda rows, title, x_label, path: path.touch())
            module.main(["--recipe", str(folder / f"{name}.yaml"), "--data", str(shop), "--out", str(out)])
        assert not drawn or (out / f"{name}-walks-tiny.png").stat().st_size > 5_000
        return json.loads((out / f"{name}-walks-tiny.json").read_text(encoding="utf-8"))

    return run


@pytest.mark.parametrize("name", list(SMALL))
def test_every_study_runs_end_to_end(studio, shop, name):
    result = studio(name, drawn=True)
    assert result["study"] == name
    assert result["fingerprint"] == load_dataset_dir(shop).fingerprint
    assert {"commit", "command", "hardware", "seeds", "recipe"} <= set(result)
    for row in result["figures"]:
        assert row["users"] >= 10
        for metric in ("ndcg@10", "recall@10", "mrr"):
            assert 0 <= row[metric]["low"] <= row[metric]["mean"] <= row[metric]["high"] <= 1


@pytest.mark.parametrize("name", list(SMALL))
def test_every_study_has_a_recipe_and_an_explanation(name):
    assert (RECIPES / f"{name}.yaml").is_file()
    assert SMALL[name][0].__doc__.startswith(tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    assert (ROOT / "studies" / f"{name}.py").is_file()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_a_study_reads_and_so_does_what_it_trains(path):
    if path.stem in ("small", "text_only"):  # what others are based on
        read_recipe(path)
        return
    module = SMALL[max((name for name in SMALL if path.stem.startswith(name)), key=len)][0]
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, StudyRecipe)]
    recipe = read_recipe(path, [], max(kinds, key=lambda kind: len(kind.__mro__)))
    for settings in [[], *getattr(recipe, "systems", {}).values(), *getattr(recipe, "supervised", {}).values()]:
        read_variant(path.parent, recipe, settings)


def test_a_target_told_whole_to_a_reader_of_the_newest_item_is_ranked_first(tiny_tokenizer, tiny_items, tiny_config):
    tokenizer = ItemSentTokenizer.wrap(tiny_tokenizer, max_items=1)
    item_tokens, model = tokenizer.encode_items(tiny_items), Jepa4RecForPreTraining(tiny_config).eval()
    split = Split(np.array(["a", "b"]), [np.array([3, 4]), np.array([5])], np.array([7, 1]))
    everything = np.ones(len(item_tokens.input_ids), bool)
    ranks = revealed_words.AsNewestItem(model, tokenizer, item_tokens, split).ranks(everything)
    assert ranks.tolist() == [1, 1]


def test_finished_runs_are_found_again(studio, capsys):
    studio("zero_shot")
    capsys.readouterr()
    studio("zero_shot")
    assert "pretrain" not in capsys.readouterr().err  # no progress line: nothing was trained


def test_checkpoints_take_the_place_of_pretraining(studio, tmp_path, tiny_tokenizer, tiny_config):
    tokenizer = ItemSentTokenizer.wrap(tiny_tokenizer, max_items=3)
    for name in ("learned", "drawn"):
        model = Jepa4RecForPreTraining(tiny_config)
        model.predictor.next[0].bias.data.fill_(name == "learned")
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    pretrained = {name: [str(tmp_path / name)] for name in ("learned", "drawn")}
    told = {row["series"] for row in studio("revealed_words", pretrained=pretrained)["figures"]}
    ways = ("learned, JEPA predictor", "learned, words as the newest item", "drawn, words as the newest item")
    assert told == set(ways)  # the predictor that was only drawn says nothing
    assert {row["series"] for row in studio("robustness", pretrained=pretrained)["figures"]} == set(pretrained)


def test_steps_of_a_run_that_kept_what_it_evaluated_are_read_and_nothing_is_trained(
    studio, tmp_path, shop, tiny_tokenizer, tiny_config
):
    tokenizer = ItemSentTokenizer.wrap(tiny_tokenizer, max_items=3)
    kept = tmp_path / "run" / "evaluated"
    for step in (2, 4):
        torch.manual_seed(step)
        Jepa4RecForPreTraining(tiny_config).save_pretrained(kept / f"phase-0-step-{step}")
        tokenizer.save_pretrained(kept / f"phase-0-step-{step}")
    pretrained, runs = {"a long run": [str(tmp_path / "run")]}, tmp_path / "runs"
    figures = studio("pretraining_steps", pretrained=pretrained, steps=[0, 2, 4], runs_dir=str(runs))["figures"]
    found = {row["x"]: row["mrr"]["mean"] for row in figures if row["series"] == "a long run"}
    assert set(found) == {0, 2, 4} and len(set(found.values())) == 3
    assert not runs.exists()
    with pytest.raises(SystemExit, match="phase-0-step-3 is neither a folder"):
        studio("pretraining_steps", pretrained=pretrained, steps=[3])


def test_steps_of_two_pretrainings_are_judged_elsewhere_and_read_alike(studio, tmp_path, shop):
    other = tmp_path / "other"
    shutil.copytree(shop, other)
    systems = {"one": [], "another": ["phases.0.objective.map_weight=0", "phases.0.lr=0.05"]}
    settings = ["evaluation.exclude_history=true", f"data.pretrain=[{SHOP}]"]
    shared = {"systems": systems, "settings": settings, "steps": [0, 2], "runs_dir": str(tmp_path / "runs")}
    as_text = studio("pretraining_steps", **shared)
    trained = sorted((tmp_path / "runs").iterdir())
    as_items = studio("pretraining_steps", **shared, history_decay=0.5)
    assert sorted((tmp_path / "runs").iterdir()) == trained  # only read in another way
    studio("pretraining_steps", **shared, judged_on=str(other))
    judged = [json.loads((run / "metrics.json").read_text("utf-8")) for run in (tmp_path / "runs").iterdir()]
    assert {record["recipe"]["data"]["dir"] for record in judged} == {str(shop), str(other)}
    of = {(row["series"], row["x"]): row["mrr"]["mean"] for row in as_items["figures"]}
    assert of["one", 0] == of["another", 0] and of["one", 2] != of["another", 2]
    assert [row["mrr"] for row in as_items["figures"]] != [row["mrr"] for row in as_text["figures"]]
    kept = {row["series"]: row["mrr"]["mean"] for row in studio("pretraining_steps", steps=[0])["figures"]}
    assert kept["popularity"] != of["popularity", 0]  # the rule for what a history holds is the recipe's


def test_a_system_has_its_own_start_and_the_steps_of_its_own_phases(studio, tmp_path):
    base = yaml.safe_load((RECIPES / "small.yaml").read_text(encoding="utf-8"))
    base["model"]["config"] |= {"hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 32}
    base["tokenizer"]["vocab_size"] = 120
    pretrain, finetune = (phase | {"steps": 2, "batch_size": 16} for phase in base["phases"])
    base["phases"] = [finetune, pretrain]
    (tmp_path / "turned.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    systems, runs = {"one": [], "turned": [f"base={tmp_path / 'turned.yaml'}"]}, tmp_path / "runs"
    result = studio("pretraining_steps", steps=[0, 1], systems=systems, runs_dir=str(runs))
    of = {(row["series"], row["x"]): row["mrr"]["mean"] for row in result["figures"]}
    assert of["one", 0] != of["turned", 0]
    for run in runs.iterdir():
        phases = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["recipe"]["phases"]
        assert [(phase["kind"], phase["steps"]) for phase in phases] == [("pretrain", 1)]


def test_all_systems_are_ranked_by_the_rules_of_the_study(shop):
    study = StudyRecipe(base="small.yaml", settings=["evaluation.exclude_history=true", "evaluation.ties=official"])
    own = [f"data.dir={shop}", "data.name=null"]
    for settings in (own, [*GRU4REC, *own]):
        _, recipe = read_variant(RECIPES, study, settings)
        assert recipe.evaluation.exclude_history and recipe.evaluation.ties == "official"


def test_systems_are_trained_side_by_side_and_compared_user_by_user(studio):
    no_text = ["tokenizer={}", "model={baseline: gru4rec, config: {hidden_size: 8}}"]
    no_text.append("phases=[{kind: sequence, steps: 2}]")
    systems = {"as it is": [], "less pre-trained": ["phases.0.steps=1"], "no text": no_text}
    result = studio("low_resource", percents=[100], systems=systems)
    trained = {row["series"]: row for row in result["figures"] if row["series"] in systems}
    assert list(trained) == list(systems)
    assert len({row["mrr"]["mean"] for row in trained.values()}) > 1
    assert [(one["a"], one["b"]) for one in result["comparisons"]] == list(combinations(systems, 2))
    for one in result["comparisons"]:
        assert one["percent"] == 100
        gain = trained[one["a"]]["mrr"]["mean"] - trained[one["b"]]["mrr"]["mean"]
        assert one["mrr"]["difference"] == pytest.approx(gain)


def test_a_system_may_be_of_a_recipe_of_its_own_on_the_studys_data(studio, shop):
    result = studio("systems")
    assert {row["series"] for row in result["figures"]} >= {"this recipe", "GRU4Rec", "popularity"}
    assert [{pair["a"], pair["b"]} for pair in result["comparisons"]] == [{"this recipe", "GRU4Rec"}]
    study = StudyRecipe(base="small.yaml", settings=["phases.1.steps=1"])  # of the base: GRU4Rec has one phase
    path, recipe = read_variant(RECIPES, study, [*GRU4REC, f"data.dir={shop}", "data.name=null"])
    assert recipe.model.baseline == "gru4rec" and recipe.data.dir == str(shop) and path.name == "gru4rec.yaml"


def test_finished_runs_stand_for_a_system_where_it_learned_from_everybody(studio, tmp_path):
    def of_gru4rec(name, **changes):
        rows = studio(name, runs_dir=str(tmp_path / "runs"), **changes)["figures"]
        return [row["mrr"]["mean"] for row in rows if row["series"] == "GRU4Rec"]

    [trained] = of_gru4rec("systems", systems={"GRU4Rec": GRU4REC})
    [run] = (tmp_path / "runs").iterdir()
    finished = f"finished={run}"
    assert of_gru4rec("systems", systems={"GRU4Rec": [finished]}) == [trained]
    assert len(of_gru4rec("history_length", systems={"GRU4Rec": [finished]})) == 2
    assert [*(tmp_path / "runs").iterdir()] == [run]
    half, whole = of_gru4rec("low_resource", systems={"GRU4Rec": [*GRU4REC, finished]})
    assert whole == trained and len(list((tmp_path / "runs").iterdir())) == 2


def test_finished_runs_of_other_data_are_refused(studio, tmp_path):
    studio("cold_items", unseen_items=[], systems={"GRU4Rec": GRU4REC}, runs_dir=str(tmp_path / "runs"))
    [held_out] = (path.parent for path in (tmp_path / "runs").glob("*/metrics.json"))
    with pytest.raises(SystemExit, match="The runs differ in fingerprint"):
        studio("systems", systems={"GRU4Rec": [f"finished={held_out}"]})


def test_runs_of_a_dataset_are_not_taken_after_it_was_rebuilt(shop, tmp_path):
    whole = load_dataset_dir(shop)
    half = make_dataset(whole.items, whole.sequences.slice(30), {"name": "walks", "config": "tiny"})
    own, pretrain = (shutil.copytree(shop, tmp_path / name) for name in ("own", "pretrain"))
    counted = ["model={baseline: popularity}", "phases=[]", "tokenizer={}", f"data.pretrain=[{{dir: {pretrain}}}]"]
    recipe = StudyRecipe(base="small.yaml", runs_dir=str(tmp_path / "runs"), min_users=10)

    def trained():
        study = Study(recipe, RECIPES, [*counted, *another_dataset(own)])
        return study.train(study.variant(kinds=tuple(KINDS)), 1)

    def read(one):
        return [one.record["fingerprint"], *one.record["pretrain_fingerprints"]]

    before = trained()
    assert read(before) == [whole.fingerprint] * 2
    save_dataset(half, own, overwrite=True)
    assert read(trained()) == [half.fingerprint, whole.fingerprint] and len(trained().ranks) == 30
    save_dataset(half, pretrain, overwrite=True)
    assert read(trained()) == [half.fingerprint] * 2
    for folder in (own, pretrain):
        save_dataset(whole, folder, overwrite=True)
    assert trained().checkpoint == before.checkpoint and len(list((tmp_path / "runs").iterdir())) == 3


def test_pictures_of_somebodys_own_tables_go_by_their_folders(shop, tmp_path, monkeypatch, capsys):
    whole, titles = load_dataset_dir(shop), []
    monkeypatch.setattr(studying, "draw", lambda rows, title, x_label, path: titles.append(title) or path.touch())
    for name in ("office", "my toys"):
        info = {"name": "table", "config": "default"}
        save_dataset(make_dataset(whole.items, whole.sequences, info), tmp_path / name)
        study = Study(StudyRecipe(base="small.yaml"), RECIPES, another_dataset(tmp_path / name))
        point = studying.Point("ours", 1, np.ones((1, 60)))
        studying.write(study, "cold_items", "Cold items", "x", [point], tmp_path / "results", {})
    assert titles == ["Cold items\ntable office", "Cold items\ntable my toys"]
    assert {path.stem for path in (tmp_path / "results").iterdir()} == {
        "cold_items-table-office", "cold_items-table-my-toys",
    }  # fmt: skip


def test_a_checkpoint_that_reads_its_items_is_ranked_so(shop, tiny_tokenizer, tiny_config):
    tokenizer, model = ItemSentTokenizer.wrap(tiny_tokenizer), Jepa4RecForPreTraining(tiny_config).eval()
    study = Study(StudyRecipe(base="small.yaml"), RECIPES, ["data.name=null", "data.config=null", f"data.dir={shop}"])
    as_text = rank_as_texts(study, (model, tokenizer))
    model.config.history_decay = 0.5
    item_tokens, test = tokenizer.encode_items(study.data.dataset.item_texts(empty=True)), study.data.splits.test
    expected = rank_split(ItemMeanScorer(encode_items(model, tokenizer, item_tokens, progress=False), 0.5), test)
    assert (rank_as_texts(study, (model, tokenizer)) == expected).all() and (expected != as_text).any()


def test_an_average_of_supervised_systems_stands_beside_the_zero_shot_ones(studio):
    alone = studio("systems", systems={"a": GRU4REC, "b": [*GRU4REC, "phases.0.lr=0.1"]})
    result = studio("zero_shot", supervised={"a": GRU4REC, "b": [*GRU4REC, "phases.0.lr=0.1"]})
    [row] = [row for row in result["figures"] if row["series"] == "supervised, average of a, b"]
    own = [one["mrr"]["mean"] for one in alone["figures"] if one["series"] in "ab"]
    assert row["mrr"]["mean"] == pytest.approx(sum(own) / 2) and row["seeds"] == 2
    pairs = [(one["a"], one["b"]) for one in result["comparisons"]]
    assert pairs == list(combinations(["before pre-training", "pre-trained", "a", "b"], 2))
    assert result["comparisons"][-1]["mrr"]["difference"] == pytest.approx(own[0] - own[1])


def test_recformers_variants_have_one_stage_and_freeze_what_they_say(studio):
    names = list(ablations.STAGES)
    result = studio("ablations", variants=names)
    assert [row["x"] for row in result["figures"]] == ["whole", *names]


def test_without_a_hold_out_cold_is_what_nobody_bought(shop, tmp_path):
    recipe = cold_items.ColdItemsRecipe(base="small.yaml", hold_out=0.0)
    data = ["data.name=null", "data.config=null", f"data.dir={shop}"]
    study, cold = cold_items.held_out_study(Study(recipe, RECIPES, data))
    bought = {item for sequence in study.data.splits.train for item in sequence.tolist()}
    assert (
        set(np.flatnonzero(~cold)) == bought and study.data.dataset.fingerprint == load_dataset_dir(shop).fingerprint
    )


def test_held_out_items_keep_last_places_only(shop):
    dataset = load_dataset_dir(shop)
    cold = np.zeros(12, bool)
    cold[[0, 5]] = True
    changed = cold_items.without_past(dataset, cold).sequences.to_pydict()
    before = dict(zip(dataset.sequences["user_id"].to_pylist(), dataset.sequences["items"].to_pylist(), strict=True))
    assert len(changed["items"]) > 50
    for user, items in zip(changed["user_id"], changed["items"], strict=True):
        assert items[-1] == before[user][-1]
        assert items[:-1] == [item for item in before[user][:-1] if not cold[item]]


def test_what_is_revealed_grows_and_is_made_of_whole_words(tiny_tokenizer, tiny_items):
    item_tokens = tiny_tokenizer.encode_items(tiny_items)
    starts = word_starts(tiny_tokenizer)[item_tokens.input_ids]
    starts[item_tokens.offsets[:-1]] = True
    shares = [revealed_words.revealed_tokens(tiny_tokenizer, item_tokens, share, 0) for share in (0.0, 0.3, 0.7, 1.0)]
    assert not shares[0].any() and shares[-1].all()
    for less, more in zip(shares[:-1], shares[1:], strict=True):
        assert (more >= less).all() and more.sum() > less.sum()
    for revealed in shares:
        continues = ~starts
        assert (revealed[continues] == revealed[np.flatnonzero(continues) - 1]).all()


def test_items_reduced_to_some_tokens_keep_their_order(tiny_tokenizer, tiny_items):
    item_tokens = tiny_tokenizer.encode_items(tiny_items[:3])
    kept = np.arange(len(item_tokens.input_ids)) % 2 == 0
    kept[item_tokens.offsets[1] : item_tokens.offsets[2]] = False  # the second item loses everything
    parts = revealed_words.only(item_tokens, kept)
    assert parts.lengths[1] == 0
    assert parts.input_ids.tolist() == item_tokens.input_ids[kept].tolist()
    both = revealed_words.joined(item_tokens, parts)
    assert both.num_items == 6 and both.lengths.tolist() == [*item_tokens.lengths, *parts.lengths]


def test_changes_of_a_text_do_what_their_name_says():
    item, rng = {"title": "Ceramic teapot 2", "brand": "", "category": "Kitchen"}, np.random.default_rng(0)
    assert sorted(robustness.shuffled(item, rng).items()) == sorted(item.items())
    for _ in range(20):
        left = robustness.missing(0.9)(item, rng)
        assert left.items() <= item.items() and any(left.values())
    noisy = robustness.noisy(1.0)(item, rng)["title"]
    assert len(noisy) == 16 and noisy[7] == " " and noisy[-1] == "2" and noisy != item["title"]


def test_interval_of_one_value_is_that_value_and_seeds_widen_it():
    assert mean_with_interval(np.ones(50), "mrr") == (1.0, 1.0, 1.0)
    ranks = np.random.default_rng(0).integers(1, 20, 400).astype(float)
    alike, apart = np.stack([ranks, ranks]), np.stack([ranks, np.minimum(ranks * 4, 400)])
    width = [mean_with_interval(r, "mrr") for r in (alike, apart)]
    assert width[0].high - width[0].low < width[1].high - width[1].low


@pytest.mark.parametrize(
    "name, changes, sentence",
    [
        ("zero_shot", {"min_users": 1000}, "at least 1000"),
        ("history_length", {"edges": [5, 8], "min_users": 16}, "too small for this study"),
        ("low_resource", {"percents": [0.1]}, "too small, set percents"),
        ("low_resource", {"systems": {}}, "systems is empty"),
        ("low_resource", {"systems": {"a": ["phases.9.lr=1"]}}, "phases.9"),
        ("systems", {"systems": {"a": ["finished=nothing*.json"]}}, "nothing*.json does not exist"),
        ("cold_items", {"hold_out": 120.0}, "percentage between 0 and 100"),
        ("pretraining_domains", {"settings": []}, "names 0 domains in data.pretrain: this study needs two"),
        ("pretraining_steps", {"steps": [-1]}, "name numbers of steps, 0 or more"),
        ("pretraining_steps", {"systems": {}}, "systems is empty"),
        ("pretraining_steps", {"systems": {"a": ["finished=b.json"]}}, "a: a finished run has one length"),
        ("pretraining_steps", {"history_decay": 5.0}, "history_decay must be above 0 and at most 1, got 5.0"),
        ("pretraining_steps", {"catalogue_whitening": 0.5}, "add history_decay"),
        ("pretraining_steps", {"judged_on": "elsewhere"}, "judged_on is for a base recipe with data.pretrain"),
        ("robustness", {"pretrained": {"a": []}}, "pretrained: a has 0 checkpoints for 1 seeds: name one a seed"),
        ("revealed_words", {"pretrained": {"a": ["b"]}, "judged_on": "c"}, "pretrained takes the place of: leave one"),
        ("revealed_words", {"pretrained": {"a": ["nowhere"]}}, "nowhere"),
        ("ablations", {"variants": ["one stage"], "finetune": False}, "one stage needs finetune: true"),
        ("ablations", {"variants": ["without luck"]}, "without luck is unknown"),
        ("zero_shot", {"seeds": []}, "seeds is empty"),
        ("zero_shot", {"seedz": [1]}, "did you mean seeds"),
        ("zero_shot", {"supervised": {"pre-trained": []}}, "supervised has pre-trained, as the text-only systems do"),
        ("zero_shot", {"base": "nothing.yaml"}, "does not exist"),
    ],
)
def test_what_cannot_be_studied_gets_one_sentence(studio, name, changes, sentence):
    with pytest.raises(SystemExit) as stop:
        studio(name, **changes)
    assert sentence in str(stop.value.code) and "\n" not in str(stop.value.code)
