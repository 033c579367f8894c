"""A campaign runs what is missing, goes on past failures, publishes what is finished, refuses what does not fit."""

import json
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from processes import python

from jepa4rec.datasets_builders import build, save_dataset
from jepa4rec.scripts import campaign
from jepa4rec.training.recipe import read_recipe, recipe_to_dict
from jepa4rec.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("campaign") / "toy"
    save_dataset(build("toy_shop", shoppers=60), folder)
    return folder


@pytest.fixture
def place(shop, tmp_path, monkeypatch):
    """A folder with two recipes: pre-training, and fine-tuning from where it ends."""
    monkeypatch.chdir(tmp_path)
    shared = {"data": {"dir": str(shop)}, "tokenizer": {"max_items": 4, "max_tokens": 64, "vocab_size": 300}}
    shared["evaluation"] = {"zero_shot": False, "validation_users": 20}
    steps = {"steps": 2, "batch_size": 16, "max_items": 2}
    first = {"run": {"output_dir": "unused"}, "model": {"config": TINY}, "phases": [{"kind": "pretrain", **steps}]}
    second = {"run": {"output_dir": "unused"}, "model": {"init": "runs/first/checkpoint"}}
    second["phases"] = [{"kind": "finetune", "history_items": 0, **steps}]
    monkeypatch.setenv("CAMPAIGN_LAUNCHER", python())
    for name, own in {"first": first, "second": second}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**shared, **own}))
    return tmp_path


def write(place, *runs, **more) -> Path:
    path = place / "campaign.yaml"
    path.write_text(yaml.safe_dump({"runs": list(runs), **more}))
    return path


def plan(path, *settings):
    return campaign.plan(read_recipe(path, kind=campaign.Campaign), path.parent, list(settings))


FIRST = {"name": "first", "recipe": "first.yaml"}
SECOND = {"name": "second", "recipe": "second.yaml", "after": ["first"], "publish": True}


@pytest.mark.slow("trains in processes")
def test_one_command_carries_a_campaign_out_and_a_second_one_starts_nothing(place, capfd):
    path = write(place, FIRST, SECOND)
    campaign.main([str(path)])
    assert "2 of 2 done" in capfd.readouterr().out
    record = json.loads((place / "results" / "second.json").read_text())
    assert record["recipe"]["model"]["init"] == "runs/first/checkpoint" and record["metrics"]["ndcg@10"] >= 0
    assert (place / "results" / "ranks" / "second.parquet").is_file()
    assert not (place / "results" / "first.json").exists()
    assert campaign.carry_out(plan(path), launch=lambda _: pytest.fail("nothing is left to run"))
    campaign.main([str(path), "--status"])
    assert "done     0 min" in capfd.readouterr().out
    with pytest.raises(ValueError, match=r"second.json was made by another recipe \(phases.0.lr differ\)"):
        plan(write(place, FIRST, {**SECOND, "set": ["phases.0.lr=1.0e-2"]}))


@pytest.mark.slow("trains in processes")
def test_a_killed_campaign_goes_on(place):
    path = write(place, {**FIRST, "set": ["phases.0.steps=4000", "run.save_every=1", "run.log_every=1"]})
    command = [python(), str(ROOT / "scripts" / "campaign.py"), str(path)]
    process = subprocess.Popen(command, cwd=place, start_new_session=True)
    deadline = time.time() + 240
    while not list((place / "runs" / "first" / "state").glob("phase-0-step-*")) and time.time() < deadline:
        time.sleep(0.5)
    process.terminate()
    assert process.wait() == 143
    folder = RunFolder("runs/first")
    folder._hold()  # nobody is at work there any more
    folder.release()
    planned = plan(path)
    assert "at step" in campaign.status(planned) and not planned[0].finished
    resumed = []
    campaign.carry_out(planned, launch=lambda one: resumed.append(one.settings) or 1)
    assert "run.resume=true" in resumed[0]


@pytest.mark.slow("trains in processes")
def test_a_failed_run_does_not_stop_the_others(place):
    other = {**FIRST, "name": "other"}
    broken = {**FIRST, "set": ["model.init=nowhere"]}
    planned = plan(write(place, broken, SECOND, other))
    assert not campaign.carry_out(planned, campaign.launch)
    told = campaign.status(planned)
    assert "failed (exit 1)" in told and "waits for first" in told and "1 of 3 done" in told


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([SECOND], "second comes after first, which is no run before it"),
        ([FIRST, FIRST], "two runs are called first"),
        ([FIRST, {**SECOND, "after": []}], "second starts from runs/first/checkpoint: write first under its `after`"),
        (
            [FIRST, {**SECOND, "after": [], "set": ["model.init=runs/first/evaluated/phase-0-step-2"]}],
            "second starts from runs/first/evaluated/phase-0-step-2: write first under its `after`",
        ),
        ([FIRST, {**SECOND, "set": ["data.dir=data/none"]}], "second reads data/none, which is not there"),
        ([{**FIRST, "set": ["phases.0.septs=1"]}], "did you mean steps"),
        ([{**FIRST, "recipe": "no.yaml"}], "no.yaml does not exist"),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_run(place, runs, message):
    with pytest.raises((ValueError, OSError), match=message):
        plan(write(place, *runs))


def test_a_record_that_lacks_a_setting_was_made_with_what_it_begins_with(place):
    path = write(place, FIRST, SECOND)
    tree = json.loads(json.dumps(recipe_to_dict(plan(path)[1].recipe)))
    assert tree["evaluation"].pop("exclude_history") is False and tree["phases"][0].pop("gradient_accumulation") == 1
    tree["evaluation"]["batch_tokens"] = 16384  # which was a setting, at what it began with
    record = place / "results" / "second.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"recipe": tree}))
    assert plan(path)[1].record.samefile(record)
    for setting in ("evaluation.exclude_history=true", "phases.0.gradient_accumulation=2"):
        other = write(place, FIRST, {**SECOND, "set": [setting]})
        with pytest.raises(ValueError, match=rf"another recipe \({setting.partition('=')[0]} differ\): give the run"):
            plan(other)
    record.write_text(json.dumps({"recipe": tree | {"evaluation": {"batch_tokens": 1}}}))
    with pytest.raises(ValueError, match="second.json: evaluation.batch_tokens: is no longer .* give the run second"):
        plan(path)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "campaigns").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_campaigns_are_valid_and_made_the_published_records(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no run has a folder
    shipped = read_recipe(path, kind=campaign.Campaign)
    for run in shipped.runs:
        own = [*shipped.set, *run.set]
        record = ROOT / shipped.results_dir / f"{run.name}.json" if run.publish else None
        campaign.check_record(campaign.Planned(run, read_recipe(path.parent / run.recipe, own), path, own, record))
