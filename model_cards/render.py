"""The model card of a run, written from the run's own files: metrics.json, recipe.yaml and log.jsonl.

python -m jepa4rec.model_cards.render runs/quickstart > card.md
"""

import argparse
import json
import re
import sys
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .results_table import METRIC_NAMES, METRICS, check_record, results_table

TEMPLATE = Path(__file__).resolve().parent / "jepa4rec.md.jinja"
TELEMETRY = {
    "target_variance": "variance of the target vectors (0 = collapsed)",
    "effective_rank": "effective rank of the target vectors (1 = collapsed)",
    "uniformity": "uniformity of the target vectors (0 = collapsed, lower is better)",
    "alignment": "alignment of history and next item (0 = equal, 4 = opposite)",
    "ema_distance": "distance of the target encoder from the context encoder",
}
# Shown of each phase; everything else is in the recipe itself.
PHASE_FIELDS = ("kind", "epochs", "steps", "batch_size", "prefixes", "lr", "lr_items", "history_items", "max_items")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def render_card(run_dir: str | Path) -> str:
    """README.md for a run's checkpoint: YAML header with model-index, then the page.

    Raises FileNotFoundError when metrics.json or recipe.yaml is missing, ValueError when one of them is damaged.
    """
    run_dir = Path(run_dir)
    record = check_record(_read(run_dir / "metrics.json", json.loads), run_dir / "metrics.json")
    recipe = _read(run_dir / "recipe.yaml", yaml.safe_load)
    card = ModelCard.from_template(
        card_data(record, recipe),
        template_path=str(TEMPLATE),
        record=record,
        recipe=recipe,
        baseline=recipe["model"].get("baseline"),
        start=starting_point(recipe["model"]["init"]),
        datasets=training_datasets(record, recipe),
        phases=[phase_line(phase) for phase in recipe["phases"]],
        table=results_table(compared(record)),
        metric_names=METRIC_NAMES,
        telemetry=telemetry_rows(run_dir / "log.jsonl"),
    )
    return str(card)


def compared(record: dict) -> list[dict]:
    """The run and, where it was measured, the model it started from."""
    if "zero_shot" not in record:
        return [record]
    return [{**record, "model": "before training", "metrics": record["zero_shot"]}, record]


def card_data(record: dict, recipe: dict) -> ModelCardData:
    """The card's YAML header; huggingface_hub builds and checks the model-index."""
    return ModelCardData(
        model_name=record["model"],
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=["sequential-recommendation", "recommendation", record["system"].lower()],
        base_model=recipe["model"]["init"] if is_hub_id(recipe["model"]["init"]) else None,
        metrics=list(METRICS),
        eval_results=[eval_result(record, metric) for metric in METRICS],
    )


def is_hub_id(init: str) -> bool:
    return HUB_ID.fullmatch(init) is not None and not Path(init).exists()


def starting_point(init: str) -> str:
    """Of a folder only the last part is told, since the rest is somebody's machine."""
    if init == "scratch":
        return "random weights and a vocabulary learned from the item texts"
    return f"`{init if is_hub_id(init) else Path(init).name}`"


def eval_result(record: dict, metric: str) -> EvalResult:
    """One row of the model-index; the fingerprint stands where the Hub keeps a dataset's revision."""
    return EvalResult(
        task_type="sequential-recommendation",
        task_name="Sequential recommendation, full catalogue",
        dataset_type=record["dataset"],
        dataset_name=" ".join(filter(None, (record["dataset"], record["config"]))),
        dataset_config=record["config"] or None,
        dataset_split=record["split"],
        dataset_revision=record["fingerprint"],
        metric_type=metric,
        metric_name=METRIC_NAMES[metric],
        metric_value=round(record["metrics"][metric], 6),
    )


def training_datasets(record: dict, recipe: dict) -> list[str]:
    """One line per dataset, the one the run is measured on first: which part of it was trained on."""
    data = recipe["data"]
    part = f"training part of the {data['split'].replace('_', '-')} split"
    measured_only = data["pretrain"] and all(phase["kind"] == "pretrain" for phase in recipe["phases"])
    use = "for evaluation only" if measured_only else part
    lines = [f"{_dataset_name(data, record)}: {use}, fingerprint `{record['fingerprint']}`{_provenance(record)}"]
    for source in data["pretrain"]:
        extent = "whole sequences" if source["part"] == "all" else part
        lines.append(f"{_dataset_name(source)}: {extent}, for pre-training")
    return lines


def _provenance(record: dict) -> str:
    """Where the data comes from and its licence, as the record tells them."""
    source, licence = record.get("source"), record.get("licence")
    return (f"; source: {source}" if source else "") + (f"; licence: {licence}" if licence else "")


def _dataset_name(data: dict, record: dict | None = None) -> str:
    """Name and config; of a built folder its last part only, since the rest is somebody's machine."""
    name, config = (record["dataset"], record["config"]) if record else (data["name"], data["config"])
    name = name or Path(data["dir"]).name
    return f"{name} `{config}`" if config else name


def phase_line(phase: dict) -> str:
    """The settings of a phase that shape what is learned, as `name value`."""
    shown = {name: phase[name] for name in PHASE_FIELDS[1:] if phase.get(name) is not None}
    if "steps" in shown:
        del shown["epochs"]
    return f"**{phase['kind']}**: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())


def telemetry_rows(log: Path) -> list[tuple[str, str, str]]:
    """(what, first value, last value) of each collapse gauge that pre-training logged; empty without pre-training."""
    if not log.is_file():
        return []
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = []
    for name, description in TELEMETRY.items():
        values = [record[name] for record in records if name in record]
        if values:
            rows.append((description, f"{values[0]:.4g}", f"{values[-1]:.4g}"))
    return rows


def _read(path: Path, parse):
    """A run's file, parsed; one sentence when it is missing or damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is not a finished run: {path.name} is missing")
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from error


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the model card of a finished run.")
    parser.add_argument("run", type=Path, help="a run's output_dir")
    args = parser.parse_args()
    try:
        print(render_card(args.run))
    except (ValueError, OSError) as error:
        sys.exit(f"render: {error}")


if __name__ == "__main__":
    main()
