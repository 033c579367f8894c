"""Try settings of a recipe, every combination once, and record how each does on the validation split.

    python scripts/search_settings.py --recipe recipes/sasrec.yaml --vary phases.0.lr=[1.0e-3,3.0e-3] \\
        --vary model.config.dropout=[0.2,0.4] --out results/searches/scientific-sasrec.json

The test split decides nothing: its numbers are not in the file. The file is written after every run, and a
combination that it already holds is not run again, so an interrupted search goes on where it was.
"""

import itertools
import json
import shutil
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("--recipe", required=True, help="YAML file of a run")
PARSER.add_argument("--set", nargs="+", action="extend", default=[], metavar="SECTION.KEY=VALUE", dest="settings")
PARSER.add_argument("--vary", action="append", required=True, metavar="SECTION.KEY=[VALUE, …]")
PARSER.add_argument("--out", type=Path, required=True, help="JSON file, continued where it exists")
PARSER.add_argument("--runs_dir", type=Path, default=Path("runs/searches"), help="where runs are while they last")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

import yaml
from accelerate.state import AcceleratorState

from jepa4rec.datasets_builders.contract import load_dataset_dir
from jepa4rec.serving.whole_files_seqrec import write_json
from jepa4rec.train_accelerate import run
from jepa4rec.training.recipe import Recipe, read_recipe, recipe_to_dict
from jepa4rec.training.run_folder import RunFolder, differences, lasting_part
from jepa4rec.training.typed_yaml import NO_YAML


def combinations(varied: list[str]) -> list[dict]:
    """Every combination of `key=[value, …]` settings, as {key: value}; the last key varies fastest.

    Raises ValueError for a setting that is no such list.
    """
    choices = {}
    for setting in varied:
        key, _, text = setting.partition("=")
        try:
            values = yaml.safe_load(text)
        except NO_YAML as error:
            raise ValueError(f"--vary {setting}: no valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, list) or not values:
            raise ValueError(f"--vary {setting}: write section.key=[value, value]")
        choices[key] = values
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def read_search(path: Path, base: dict) -> dict:
    """The search so far, or a new one. Raises ValueError when the file holds another search."""
    if not path.exists():
        return {**base, "runs": []}
    found = json.loads(path.read_text(encoding="utf-8"))
    different = differences({name: found.get(name) for name in base}, base)
    if different:
        raise ValueError(f"{path} holds another search ({', '.join(different)} differ): choose another --out")
    return found


def try_settings(recipe_file: str, settings: list[str], choice: dict, runs_dir: Path) -> dict:
    """Train one combination; returns it with its validation metrics, length and origin. Its weights are not kept."""
    folder = runs_dir / "-".join(f"{key.rpartition('.')[2]}={value}" for key, value in choice.items())
    chosen = [f"{key}={json.dumps(value)}" for key, value in choice.items()]
    place = [f"run.output_dir={folder}", "run.overwrite=true"]
    recipe = read_recipe(recipe_file, [*settings, *chosen, *place])
    AcceleratorState._reset_state(reset_partial_state=True)
    record = run(recipe)
    steps = best_step(RunFolder(folder), recipe)
    shutil.rmtree(folder)
    origin = {name: record[name] for name in ("commit", "hardware")}
    return {"settings": choice, "validation_metrics": record["validation_metrics"], "best_step": steps, **origin}


def best_step(folder: RunFolder, recipe: Recipe) -> int:
    """The step of the last phase with the best validation NDCG@10."""
    records = [json.loads(line) for line in folder.log.read_text(encoding="utf-8").splitlines()]
    last = len(recipe.phases) - 1
    measured = [r for r in records if r["phase"] == last and "validation_ndcg@10" in r]
    return max(measured, key=lambda r: r["validation_ndcg@10"])["step"]


def search(recipe_file: str, settings: list[str], varied: list[str], out: Path, runs_dir: Path) -> dict:
    """Run what is missing, write the file after each run; returns its content, best runs first."""
    recipe = read_recipe(recipe_file, settings)
    fingerprint = load_dataset_dir(recipe.data.dir).fingerprint if recipe.data.dir else None
    base = {"recipe": Path(recipe_file).name, "base_settings": settings, "fingerprint": fingerprint}
    base["settings_of_recipe"] = json.loads(json.dumps(lasting_part(recipe_to_dict(recipe))))
    found = read_search(out, {**base, "selected_by": "validation ndcg@10"})
    done = [entry["settings"] for entry in found["runs"]]
    for choice in combinations(varied):
        if choice not in done:
            found["runs"].append(try_settings(recipe_file, settings, choice, runs_dir))
            found["runs"].sort(key=lambda entry: -entry["validation_metrics"]["ndcg@10"])
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, found)
    return found


@command(PARSER)
def main(options: Namespace) -> None:
    found = search(options.recipe, options.settings, options.vary, options.out, options.runs_dir)
    for entry in found["runs"]:
        print(f"{entry['validation_metrics']['ndcg@10']:.4f}  {json.dumps(entry['settings'])}")


if __name__ == "__main__":
    main()
