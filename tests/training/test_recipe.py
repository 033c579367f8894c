"""Recipes: every key is known and typed, settings reach any depth, and what is shipped can be read."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from jepa4rec.training.phases import KINDS
from jepa4rec.training.phases.finetune import FinetunePhase
from jepa4rec.training.phases.pretrain import PretrainPhase
from jepa4rec.training.recipe import Recipe, read_recipe, write_recipe

ROOT = Path(__file__).resolve().parents[2]
MINIMAL = {
    "run": {"output_dir": "runs/x"},
    "data": {"name": "toy_shop"},
    "phases": [{"kind": "pretrain"}, {"kind": "finetune", "lr": 1e-4, "objective": {"temperature": 0.07}}],
}


@pytest.fixture
def write(tmp_path):
    def write_tree(tree) -> Path:
        path = tmp_path / "r.yaml"
        path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
        return path

    return write_tree


@pytest.fixture
def minimal(write):
    return write(MINIMAL)


def test_sections_become_typed_dataclasses_with_defaults(minimal):
    recipe = read_recipe(minimal)
    assert isinstance(recipe.phases[0], PretrainPhase) and isinstance(recipe.phases[1], FinetunePhase)
    assert recipe.phases[1].lr == 1e-4 and recipe.phases[1].objective.temperature == 0.07
    assert recipe.phases[0].objective.mlm_weight == 0.1 and recipe.run.seed == 0


def test_settings_reach_sections_list_entries_and_absent_sections(minimal):
    settings = ["phases.0.lr=1.0e-3", "run.resume=true", "evaluation.exclude_history=true"]
    settings += ["phases.1.objective.temperature=1", "data.data_files=[a.csv, b.csv]", "run.mixed_precision=no"]
    recipe = read_recipe(minimal, settings)
    assert recipe.phases[0].lr == 1e-3 and recipe.run.resume and recipe.evaluation.exclude_history
    assert recipe.phases[1].objective.temperature == 1.0 and isinstance(recipe.phases[1].objective.temperature, float)
    assert recipe.data.data_files == ["a.csv", "b.csv"] and recipe.run.mixed_precision == "no"


def test_recformers_slips_are_off_unless_asked_for(minimal):
    parity = read_recipe(ROOT / "recipes" / "recformer_parity.yaml")
    first, second = parity.phases
    asked = {"prefixes": "random", "min_history": 0, "schedule": "recformer", "clip_norm": None, "stale_items": True}
    default = read_recipe(minimal).phases[1]
    for name, value in asked.items():
        assert getattr(first, name) == getattr(second, name) == value != getattr(default, name), name
    assert (first.continue_schedule, second.continue_schedule, default.continue_schedule) == (False, True, False)
    assert (parity.evaluation.ties, read_recipe(minimal).evaluation.ties) == ("official", "mean")
    for name in ("pretrain", "finetune"):
        recipe = read_recipe(ROOT / "recipes" / f"recformer_{name}.yaml")
        assert recipe.run.system == "RecFormer" and recipe.evaluation.ties == "mean"
        assert all(phase.min_history == 1 and phase.clip_norm == 1.0 for phase in recipe.phases)


def test_a_key_that_stands_twice_is_refused(minimal):
    minimal.write_text(minimal.read_text(encoding="utf-8") + "run:\n  output_dir: elsewhere\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is not valid YAML: the key run stands twice"):
        read_recipe(minimal)


def test_a_written_recipe_reads_back_equal(minimal, tmp_path):
    recipe = read_recipe(minimal, ["phases.0.lr=3.0e-5"])
    write_recipe(recipe, tmp_path / "out.yaml")
    assert read_recipe(tmp_path / "out.yaml") == recipe


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run.ouput_dir=x", r"--set: run.ouput_dir: unknown key; did you mean output_dir\?"),
        ("phases.1.history_itmes=5", r"phases.1.history_itmes: unknown key; did you mean history_items\?"),
        ("phases.0.lr_items=1.0", "phases.0.lr_items: unknown key"),
        ("phases.0.objective.temprature=1.0", r"did you mean temperature\?"),
        ("phases.0.lr=5e-5", "phases.0.lr: expected a number, found text .*write 5.0e-5"),
        ("phases.0.batch_size=1.5", "phases.0.batch_size: expected a whole number, found a number"),
        ("phases.0.batch_size=true", "phases.0.batch_size: expected a whole number, found true or false"),
        ("run.resume=1", "run.resume: expected true or false, found a whole number"),
        ("evaluation.baselines=[popularity]", "evaluation: baselines lacks item_transition: every table carries"),
        ("evaluation.baselines=[]", "evaluation: baselines lacks popularity and item_transition"),
        ("evaluation.baselines=[popularty]", "evaluation.baselines.0: expected one of popularity"),
        ("run.tracker=wandb", "run.tracker: expected one of none, tensorboard, trackio"),
        ("phases.0.kind=train", "phases.0.kind: expected one of finetune, item_sequence"),
        ("phases.2.lr=1.0", "2 is not a position in a list of 2"),
        ("phases.0.lr.x=1.0", "phases.0.lr: expected a number, found keys with values"),
        ("run.seed.x=1", "run.seed: expected a whole number"),
        ("phases.0.objective.temperature=0", "temperature is 0"),
        ("phases.0.gradient_accumulation=3", "batch_size 256 does not divide"),
        ("phases.0.cache_chunk=64", "is no longer a setting: gradient_accumulation says in how many slices"),
        ("phases.1.objective.mlm_weight=-1", "mlm_weight is -1"),
        ("phases.1={kind: finetune, gradient_accumulation: 2, objective: {mlm_weight: 0.1}}", "mlm_weight needs"),
        ("data.ratio=[7, 2]", "three whole numbers, of training, validation and test"),
        ("data.dir=x", "either by name .* or by dir"),
        ("run=3", "run: expected a section with keys"),
        ("seed", "write section.key=value"),
        ("phases.1.item_vectors=keep", "no item matrix to keep"),
        ("phases.1.text_gate=0", "text_gate must be above 0"),
        ("phases.1={kind: finetune, history_reading: items}", "needs history_items: 0"),
        ("phases.1={kind: finetune, history_reading: items, history_items: 0}", "objective.item_matrix frozen"),
        (
            "phases=[{kind: finetune, history_items: 0}, {kind: finetune, history_reading: items, history_items: 0, "
            "objective: {item_matrix: frozen}}]",
            "must agree on history_reading",
        ),
        ("phases.1.text_gate=2", "text_gate must be above 0 and at most 1, got 2"),
        ("phases.1={kind: finetune, steps: 5, epochs: -1}", "steps or epochs must be above 0, got epochs -1"),
        ("run.seed=99999999999", "run: seed must be at least 0 and at most"),
        ("phases.0.lr=0.0", "phases.0: lr must be above 0 and at most 1, got 0.0"),
        ("phases.0.lr=5.0", "phases.0: lr must be above 0 and at most 1, got 5.0"),
        ("phases.0.lr=-0.1", "phases.0: lr must be above 0 and at most 1, got -0.1"),
        ("phases.0.weight_decay=-5.0", "phases.0: weight_decay must be at least 0"),
        ("phases.0.epochs=.nan", "phases.0.epochs: expected a finite number, found nan"),
        ("phases.0.lr=.inf", "phases.0.lr: expected a finite number"),
        ("phases.0.epochs=0", "steps or epochs must be above 0"),
        ("phases.0.steps=0", "steps must be at least 1"),
        ("phases.0.warmup=2.0", "warmup must be at least 0 and at most 1"),
        ("phases.0.clip_norm=0.0", "clip_norm must be above 0"),
        ("phases.0.betas=[0.9]", "betas must be two numbers"),
        ("phases.0.max_items=0", "max_items must be at least 1"),
        ("phases.0.patience=-1", "patience must be at least 1"),
        ("phases.0.evaluate_every_epochs=-1.0", "evaluate_every_epochs must be at least 0"),
        ("phases.0.history_mask_rate=1.5", "history_mask_rate must be at least 0 and at most 1"),
        ("phases.1.lr_items=-1.0", "phases.1: lr_items must be above 0"),
        ("evaluation.validation_users=0", "evaluation: validation_users must be at least 1"),
        ("tokenizer.max_tokens=0", "tokenizer: max_tokens must be at least 1"),
        ("data.users=0", "data: users must be at least 1"),
        ("phases.0.kind=[]", "phases.0.kind: expected one of"),
        ("phases.0.lr=!!timestamp 2024-99-99", "the value is not valid YAML"),
    ],
)
def test_a_wrong_setting_is_one_clear_sentence(minimal, setting, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_recipe(minimal, [setting])
    assert "\n" not in str(caught.value)


def test_settings_inside_a_single_value_are_refused(write):
    path = write({**MINIMAL, "phases": [1]})
    for setting in ("phases.0.x=1", "phases.0.x.y=1"):
        with pytest.raises(ValueError, match="0 is a single value, it has no keys inside"):
            read_recipe(path, [setting])


def test_a_model_that_is_given_has_a_shape_of_its_own(write):
    scratch = {**MINIMAL, "model": {"init": "scratch", "config": {"hidden_size": 128}}}
    assert read_recipe(write(scratch)).model.config == {"hidden_size": 128}
    assert read_recipe(write(scratch), ["model.init=some/model"]).model.config == {}
    settings = ["model.config.pooling=cls", "model.init=some/model"]
    assert read_recipe(write(scratch), settings).model.config == {"pooling": "cls"}
    assert read_recipe(write(scratch), [*settings, "model.init=scratch"]).model.config["hidden_size"] == 128
    loaded = {**MINIMAL, "model": {"init": "a/b", "config": {"pooling": "mean"}}}
    assert read_recipe(write(loaded), ["model.init=some/model"]).model.config == {"pooling": "mean"}


def test_a_wrong_key_in_the_file_names_the_file(write):
    path = write({**MINIMAL, "modle": {}})
    with pytest.raises(ValueError, match=r"r\.yaml: modle: unknown key; did you mean model\?"):
        read_recipe(path)


def test_a_missing_required_key_is_named(write):
    with pytest.raises(ValueError, match="run.output_dir: this key is required"):
        read_recipe(write({**MINIMAL, "run": {}}))


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "[" * 1000, "a: !!timestamp x"])
def test_a_file_that_is_no_recipe_is_named(write, text):
    with pytest.raises(ValueError, match=r"r\.yaml"):
        read_recipe(write(text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.yaml does not exist"):
        read_recipe(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_are_valid(path):
    recipe = read_recipe(path)
    assert recipe.run.output_dir.startswith("runs/")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("evaluation.batch_tokens=512", "evaluation.batch_tokens: is no longer a setting: the device decides"),
        ("data.cache_dir=caches", "data.cache_dir: is no longer a setting: the environment's HF_HOME"),
        ("phases.1.objective.user_dropout=0.2", "objective.user_dropout: is no longer a setting"),
    ],
)
def test_a_setting_that_is_gone_says_so_and_its_old_default_is_read(setting, message):
    path = ROOT / "recipes" / "quickstart.yaml"
    with pytest.raises(ValueError, match=message):
        read_recipe(path, [setting])
    defaults = ["evaluation.batch_tokens=16384", "data.cache_dir=null", "phases.1.objective.chunk_items=null"]
    assert read_recipe(path, [*defaults, "run.mixed_precision=null"]).evaluation == read_recipe(path).evaluation


def test_a_recipe_that_was_renamed_is_named():
    with pytest.raises(FileNotFoundError, match="it is called hybrid_scientific.yaml now"):
        read_recipe(ROOT / "recipes" / "jepa4rec_scientific.yaml")


@pytest.mark.parametrize("text", ["'{long}'", "{long}: 1", "data: {{name: x, {long}: 2}}", "'{long}': 1\n'{long}': 2"])
def test_a_file_that_is_one_long_text_does_not_bury_the_sentence(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text.format(long="word_" * 1_000))
    with pytest.raises(ValueError, match=r"r\.yaml") as error:
        read_recipe(tmp_path / "r.yaml")
    assert "word_word" in str(error.value) and len(str(error.value)) < 600


# Said by whoever starts a run, of this run alone.
OF_ONE_RUN = {"resume", "overwrite", "data_files"}


def settings_of(kind: type) -> set[str]:
    """Names of a dataclass's settings, and of those that they hold."""
    inner = [part for hint in get_type_hints(kind).values() for part in (hint, *get_args(hint)) if is_dataclass(part)]
    return {field.name for field in fields(kind)}.union(*map(settings_of, inner))


def test_every_setting_is_used_by_a_recipe_or_a_study():
    """What nobody sets is no setting."""
    files = [*ROOT.glob("recipes/**/*.yaml"), *ROOT.glob("studies/*.py")]
    written = "".join(path.read_text(encoding="utf-8") for path in files)
    settings = set().union(*map(settings_of, [Recipe, *KINDS.values()])) - OF_ONE_RUN
    assert not [name for name in sorted(settings) if not re.search(rf"\b{name}[:=]|['\"]{name}['\"]", written)]
