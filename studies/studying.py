"""What all studies share: a study's recipe, its training runs, figures with intervals, one JSON and one plot.

A study is a base recipe (any recipe of `train_accelerate.py`) trained in several variants and seeds, or one trained
model measured in several ways. Trained runs are kept in `runs_dir` under a hash of their whole recipe, so studies
share them, an interrupted study goes on where it was, and changed settings or data never meet old results.
"""

import hashlib
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jepa4rec.evaluation.metrics.significance import mean_with_interval
from jepa4rec.evaluation.plots import require_plots
from jepa4rec.evaluation.records import describe_run
from jepa4rec.hub.opening import find_checkpoint, read_config
from jepa4rec.model_cards.finished_runs import check_same_question, read_runs
from jepa4rec.model_cards.results_table import dataset_name
from jepa4rec.serving.whole_files_seqrec import written_files
from jepa4rec.train_accelerate import run
from jepa4rec.training.command_line import command
from jepa4rec.training.data import DatasetRecipe, RunData, load_run_data, open_dataset
from jepa4rec.training.phases import KINDS
from jepa4rec.training.recipe import EvaluationRecipe, Recipe, read_recipe, recipe_to_dict
from jepa4rec.training.run_folder import RunFolder

METRICS = ("ndcg@10", "recall@10", "mrr")
TEXT_KINDS = tuple(name for name, kind in KINDS.items() if kind.trains_encoder)


@dataclass(kw_only=True)
class StudyRecipe:
    """What every study's recipe may say. `base`: the training recipe, beside this file; `settings`: section.key=value
    changes to it; `seeds`: one run each."""

    base: str
    settings: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    runs_dir: str = "runs/studies"
    min_users: int = 30  # fewer make no figure: its interval would be all there is to see

    def __post_init__(self):
        if not self.seeds:
            raise ValueError("seeds is empty: name at least one")


@dataclass(kw_only=True)
class PretrainedRecipe(StudyRecipe):
    """`judged_on`: a built dataset that pre-training is validated on, instead of the study's own; studies of several
    shops then share their runs."""

    judged_on: str | None = None


@dataclass(kw_only=True)
class CheckpointsRecipe(PretrainedRecipe):
    """`pretrained`: checkpoints that take the place of pre-training, one a seed, by the name of their system."""

    pretrained: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        for name, checkpoints in self.pretrained.items():
            if len(checkpoints) != len(self.seeds):
                seeds = f"{len(checkpoints)} checkpoints for {len(self.seeds)} seeds"
                raise ValueError(f"pretrained: {name} has {seeds}: name one a seed")
        if self.pretrained and self.judged_on:
            raise ValueError("judged_on is for pre-training, which pretrained takes the place of: leave one out")


@dataclass(kw_only=True)
class SystemsRecipe(StudyRecipe):
    """`systems`: the settings of each system to train, by its name. They change the base recipe, up to replacing its
    model, tokenizer and phases by a baseline's, or name by `base=FILE` a recipe of the system's own, whose data are
    the study's. `finished=PATTERN` names runs that need no training: folders of runs, or published records
    (results/NAME.json), one a seed, of the study's dataset and learned from all of it."""

    systems: dict[str, list[str]] = field(default_factory=lambda: {"this recipe": []})


class Trained(NamedTuple):
    """A finished run: its record, the ranks of the test users, and where its checkpoint lies."""

    record: dict
    ranks: np.ndarray  # (U,)
    checkpoint: Path


class Point(NamedTuple):
    """One figure of a study: ranks (seeds, U) of one series at one x."""

    series: str
    x: float | str
    ranks: np.ndarray


class Study:
    """A study under way: reads base recipes, trains them, and knows the data they are measured on."""

    def __init__(self, recipe: StudyRecipe, folder: Path, extra: Sequence[str] = ()):
        self.recipe, self.folder, self.extra = recipe, folder, list(extra)
        self._fingerprints: dict[str, str] = {}
        self.data: RunData = load_run_data(self.variant(kinds=tuple(KINDS)).data)
        if len(self.data.splits.test.targets) < recipe.min_users:
            raise ValueError(
                f"{self.dataset_name} has {len(self.data.splits.test.targets)} test users; a study needs at least "
                f"{recipe.min_users} (min_users) for its intervals to mean anything"
            )

    @property
    def dataset_name(self) -> str:
        """As tables of results call it: what somebody built of tables of their own goes by its folder."""
        info, folder = self.data.dataset.info, self.variant(kinds=tuple(KINDS)).data.dir
        record = {"dataset": info.get("name"), "config": info.get("config"), "folder": folder}
        return " ".join(filter(None, dataset_name(record)))

    def variant(self, settings: Sequence[str] = (), kinds: Sequence[str] = TEXT_KINDS) -> Recipe:
        """The base recipe with changes, and only its phases of these kinds.

        Raises:
            ValueError: no phase is left.
        """
        path, recipe = read_variant(self.folder, self.recipe, [*self.extra, *settings])
        phases = [phase for phase in recipe.phases if phase.kind in kinds]
        recipe.phases, lost = phases, len(recipe.phases) - len(phases)
        if lost and not phases:
            raise ValueError(f"{path} has no phase of kind {' or '.join(kinds)}, which this study trains")
        return recipe

    def phases(self, kind: str, settings: Sequence[str] = ()) -> list[int]:
        """Places of a variant's phases of a kind. Raises ValueError when there is none."""
        phases = self.variant(settings, tuple(KINDS)).phases
        places = [place for place, phase in enumerate(phases) if phase.kind == kind]
        if not places:
            of = "a system of " if settings else ""
            raise ValueError(f"{of}{self.folder / self.recipe.base} has no {kind} phase, which this study changes")
        return places

    def train(self, recipe: Recipe, seed: int) -> Trained:
        """Run a recipe, or find it finished."""
        recipe.run.seed, recipe.run.name, recipe.run.resume = seed, None, True
        folder = self._folder(recipe)
        recipe.run.output_dir = str(folder.root)
        record = json.loads(folder.metrics.read_text(encoding="utf-8")) if folder.is_finished() else run(recipe)
        ranks = pq.read_table(folder.ranks, columns=["rank"])["rank"].to_numpy()
        return Trained(record, ranks, folder.checkpoint)

    def _folder(self, recipe: Recipe) -> RunFolder:
        """Where a run is kept; after its data were rebuilt, beside the run of those before."""
        now = [self._fingerprint(part) for part in (recipe.data, *recipe.data.pretrain)]
        folder = RunFolder(Path(self.recipe.runs_dir) / recipe_hash(recipe))
        if all(old == new for old, new in zip(folder.fingerprints() or (), now, strict=False)):
            return folder
        return RunFolder(f"{folder.root}-{hashlib.sha256(''.join(now).encode()).hexdigest()[:8]}")

    def _fingerprint(self, data: DatasetRecipe) -> str:
        if repr(data) not in self._fingerprints:
            self._fingerprints[repr(data)] = open_dataset(data).fingerprint
        return self._fingerprints[repr(data)]

    def train_seeds(self, settings: Sequence[str] = (), kinds: Sequence[str] = TEXT_KINDS) -> list[Trained]:
        """A variant once a seed."""
        return [self.train(self.variant(settings, kinds), seed) for seed in self.recipe.seeds]

    def pretrain_seeds(self, settings: Sequence[str] = ()) -> list[Trained]:
        """A variant's pre-training once a seed, unranked; for a `PretrainedRecipe`.

        Raises:
            ValueError: it has none, or would learn from the dataset that it is judged on.
        """
        self.phases("pretrain", settings)
        whole, settings = self.variant(settings, tuple(KINDS)), [*settings, "evaluation.zero_shot=false"]
        if self.recipe.judged_on:
            if not whole.data.pretrain:
                raise ValueError("judged_on is for a base recipe with data.pretrain: pre-training would learn from it")
            settings += another_dataset(self.recipe.judged_on)
        return self.train_seeds(settings, ("pretrain",))

    def pretrained(self) -> dict[str, list[str | Path]]:
        """Checkpoints, one a seed, by the name of their system: those that a `CheckpointsRecipe` names, or without a
        name those of the base recipe's pre-training.

        Raises:
            OSError: one that is named cannot be found.
        """
        named = {name: [find_checkpoint(one) for one in given] for name, given in self.recipe.pretrained.items()}
        for checkpoint in sum(named.values(), []):
            read_config(checkpoint)
        return named or {"": [one.checkpoint for one in self.pretrain_seeds()]}

    def train_systems(self, systems: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
        """Ranks (seeds, U) of each system, trained or found finished as `SystemsRecipe` says."""
        return {name: self.system_ranks(settings) for name, settings in systems.items()}

    def system_ranks(self, settings: Sequence[str], kinds: Sequence[str] = tuple(KINDS)) -> np.ndarray:
        """Ranks (seeds, U) of one system.

        Raises:
            FileNotFoundError, ValueError: a finished run that cannot be read, or is of other users or rules.
        """
        pattern = own_setting(settings, "finished")
        if pattern is None:
            return stack(self.train_seeds(settings, kinds))
        test, runs = self.data.splits.test, read_runs(pattern)
        tasks = {"user_id": pa.array(map(str, test.user_ids)), "target": pa.array(test.targets, pa.int32())}
        rules = {"exclude_history": self.rules.exclude_history, "ties": self.rules.ties}
        ours = {"fingerprint": self.data.dataset.fingerprint, "split": "test", **rules}, pa.table(tasks)
        for run_of_seed in runs:
            check_same_question(ours, run_of_seed)
        return np.stack([ranks["rank"].to_numpy() for _, ranks in runs])

    @property
    def rules(self) -> EvaluationRecipe:
        """The base recipe's rules of ranking, which hold for every system of the study."""
        return self.variant(kinds=tuple(KINDS)).evaluation

    def require_users(self, users: int, what: str) -> None:
        """Raises ValueError when a figure would rest on too few users."""
        if users < self.recipe.min_users:
            raise ValueError(
                f"{self.dataset_name} has {users} {what}, fewer than min_users = {self.recipe.min_users}: the dataset "
                "is too small for this study"
            )


def read_variant(folder: Path, study: StudyRecipe, settings: Sequence[str]) -> tuple[Path, Recipe]:
    """A study's base recipe after changes, or the recipe that `base=FILE` among them names, on the study's data and
    ranked by its rules; and where it stands."""
    shared, base = [setting for setting in settings if setting.startswith("data.")], own_setting(settings, "base")
    settings = [setting for setting in settings if not setting.startswith(("base=", "finished="))]
    if base is None:
        path = folder / study.base
        return path, read_recipe(path, [*study.settings, *settings])
    recipe = read_recipe(folder / base, [setting for setting in settings if setting not in shared])
    own = read_recipe(folder / study.base, [*study.settings, *shared])
    recipe.data = own.data
    recipe.evaluation.exclude_history, recipe.evaluation.ties = own.evaluation.exclude_history, own.evaluation.ties
    return folder / base, recipe


def another_dataset(folder: str | Path) -> list[str]:
    """Settings that put a built dataset in the place of the recipe's."""
    return ["data.name=null", "data.config=null", "data.data_files=null", f"data.dir={folder}"]


def own_setting(settings: Sequence[str], name: str) -> str | None:
    """What the last `name=VALUE` among a system's settings says; None without one."""
    values = [setting.partition("=")[2] for setting in settings if setting.startswith(f"{name}=")]
    return values[-1] if values else None


def recipe_hash(recipe: Recipe) -> str:
    """Of everything that shapes the result: the recipe without its output folder."""
    tree = recipe_to_dict(recipe)
    tree["run"].pop("output_dir")
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def stack(trained: Iterable[Trained]) -> np.ndarray:
    """Ranks of several seeds, (seeds, U)."""
    return np.stack([one.ranks for one in trained])


# ------------------------------------------------------------------------------------------------ results


def figures(points: Sequence[Point]) -> list[dict]:
    """Each point's users, seeds, and mean with 95 % interval per metric."""
    rows = []
    for point in points:
        ranks = np.atleast_2d(point.ranks)
        values = {metric: mean_with_interval(ranks, metric)._asdict() for metric in METRICS}
        rows.append({"series": point.series, "x": point.x, "users": ranks.shape[1], "seeds": len(ranks), **values})
    return rows


def table(rows: list[dict], x_label: str) -> str:
    """The figures as Markdown."""
    lines = [f"| series | {x_label} | users | seeds | " + " | ".join(METRICS) + " |", "| --- " * 7 + "|"]
    for row in rows:
        values = " | ".join(f"{row[m]['mean']:.4f} [{row[m]['low']:.4f}, {row[m]['high']:.4f}]" for m in METRICS)
        lines.append(f"| {row['series']} | {row['x']} | {row['users']} | {row['seeds']} | {values} |")
    return "\n".join(lines)


def draw(rows: list[dict], title: str, x_label: str, path: Path, metric: str = "ndcg@10") -> None:
    """A picture of one metric: curves with bands where x is a number, points with bars where it is a name."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    numeric = all(isinstance(row["x"], int | float) for row in rows)
    names = list(dict.fromkeys(str(row["x"]) for row in rows))
    series = list(dict.fromkeys(row["series"] for row in rows))
    height = 4.4 if numeric else 1.9 + len(names) * max(0.4, 0.2 * len(series))
    figure, axes = plt.subplots(figsize=(7.0, height), layout="constrained")
    for number, name in enumerate(series):
        own = [row for row in rows if row["series"] == name]
        mean, low, high = ([row[metric][key] for row in own] for key in ("mean", "low", "high"))
        if numeric:
            x = [row["x"] for row in own]
            axes.plot(x, mean, marker="o", label=name)
            axes.fill_between(x, low, high, alpha=0.2)
        else:
            shift = 0.7 * ((number + 0.5) / len(series) - 0.5)
            places = [names.index(str(row["x"])) + shift for row in own]
            bars = [np.subtract(mean, low).clip(0), np.subtract(high, mean).clip(0)]
            axes.errorbar(mean, places, xerr=bars, fmt="o", capsize=3, label=name)
    label = f"{metric.upper()} (mean, 95 % interval)"
    if numeric:
        axes.set(xlabel=x_label, ylabel=label, title=title, ylim=(0, None))
        if min(row["x"] for row in rows) > 0 and max(row["x"] for row in rows) >= 20 * min(row["x"] for row in rows):
            axes.set_xscale("log")
    else:
        axes.set(xlabel=label, ylabel=x_label, title=title, yticks=range(len(names)), yticklabels=names)
        axes.invert_yaxis()
    if len(series) > 1:
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(study: Study, name: str, title: str, x_label: str, points: Sequence[Point], out: Path, facts: dict) -> dict:
    """`out`/NAME-DATASET.json and .png, each whole; prints the table."""
    rows, info, base = figures(points), study.data.dataset.info, study.variant(kinds=tuple(KINDS))
    result = {
        "study": name, "title": title, "dataset": info.get("name"), "config": info.get("config"),
        "fingerprint": study.data.dataset.fingerprint, "split": "test", "seeds": study.recipe.seeds, **describe_run(),
        "recipe": recipe_to_dict(base), "settings": vars(study.recipe), **facts, "x": x_label,
        "figures": rows,
    }  # fmt: skip
    stem = "-".join([name, *study.dataset_name.split()])
    with written_files(*(out / f"{stem}{end}" for end in (".png", ".json"))) as (picture, of_figures):
        draw(rows, f"{title}\n{study.dataset_name}", x_label, picture)
        of_figures.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(f"\n{title}: {study.dataset_name}\n\n{table(rows, x_label)}\n\nwrote {out / stem}.json and .png")
    return result


# ------------------------------------------------------------------------------------------------ command line


def study_command(
    parser: ArgumentParser,
    kind: type[StudyRecipe],
    title: str,
    x_label: str,
    measure: Callable[[Study], tuple[list[Point], dict]],
) -> Callable[[list[str] | None], dict]:
    """The `main` of a study: read its recipe, measure, write."""

    @command(parser)
    def main(options: Namespace) -> dict:
        require_plots()
        recipe = read_recipe(options.recipe, options.settings, kind)
        study = Study(recipe, options.recipe.parent, another_dataset(options.data) if options.data else ())
        points, facts = measure(study)
        return write(study, parser.prog, title, x_label, points, options.out, facts)

    main.study_recipe = kind
    return main
