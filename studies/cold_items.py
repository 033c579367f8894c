"""Cold items against known ones: can an item be found that nobody has bought yet?

    python studies/cold_items.py --data data/scientific

A share of the items (`hold_out` percent, drawn by `items_seed`) is taken out of everybody's past: out of every
sequence but its last place. The base recipe, and each of `systems`, then learns without ever seeing them bought, and
the test users whose last item is one of them show how cold items fare, beside the users whose last item is known. With
`hold_out` 0 nothing is taken out: cold are the targets that no training sequence has. RecFormer, Table 3.
"""

import hashlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.studies import study_parser

PARSER = study_parser(__name__, __file__, __doc__)

import numpy as np
import pyarrow as pa

from jepa4rec.datasets_builders.contract import SeqRecDataset, make_dataset, save_dataset
from jepa4rec.studies.measuring import baseline_ranks, group_points, open_trained, rank_as_texts
from jepa4rec.studies.studying import Point, Study, SystemsRecipe, stack, study_command

NAMES = {"negatives": "as negatives", "fixed": "fixed", "left_out": "left out of the softmax"}


@dataclass(kw_only=True)
class ColdItemsRecipe(SystemsRecipe):
    """`hold_out`: percent of the items that nobody has bought before. `unseen_items`: what fine-tuning does with them
    in its softmax, one series each (`FineTuningObjective`); [] fine-tunes nothing. `systems` stand beside the base
    recipe."""

    hold_out: float = 10.0
    items_seed: int = 0
    systems: dict[str, list[str]] = field(default_factory=dict)
    unseen_items: list[Literal["negatives", "fixed", "left_out"]] = field(
        default_factory=lambda: ["negatives", "fixed", "left_out"]
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.hold_out < 100:
            raise ValueError(f"hold_out is {self.hold_out}: it is a percentage between 0 and 100")


def without_past(dataset: SeqRecDataset, cold: np.ndarray) -> SeqRecDataset:
    """The dataset with the `cold` items (a mask over items) in last places only; users left with fewer than three
    interactions go."""
    rows = []
    for row in dataset.sequences.to_pylist():
        last = len(row["items"]) - 1
        kept = [place for place, item in enumerate(row["items"]) if place == last or not cold[item]]
        if len(kept) >= 3:
            lists = {name: [value[p] for p in kept] for name, value in row.items() if isinstance(value, list)}
            rows.append({**row, **lists})
    sequences = pa.Table.from_pylist(rows, dataset.sequences.schema)
    info = {key: dataset.info.get(key) for key in ("name", "config", "source", "licence")}
    return make_dataset(dataset.items, sequences, {**info, "config": f"{info['config']}, cold items held out"})


def held_out_study(study: Study) -> tuple[Study, np.ndarray]:
    """The study on the dataset without a past for some items, and their mask; or as it is, and what has none there."""
    recipe, num_items = study.recipe, study.data.num_items
    if not recipe.hold_out:
        return study, ~study.data.seen_items().numpy()
    cold = np.zeros(num_items, bool)
    count = max(1, round(num_items * recipe.hold_out / 100))
    cold[np.random.default_rng(recipe.items_seed).choice(num_items, count, replace=False)] = True
    name = hashlib.sha256(cold.tobytes() + study.data.dataset.fingerprint.encode()).hexdigest()[:16]
    folder = Path(recipe.runs_dir) / f"cold-{name}"
    if not folder.exists():
        save_dataset(without_past(study.data.dataset, cold), folder)
    data = ["data.name=null", "data.config=null", "data.data_files=null", f"data.dir={folder}"]
    return Study(recipe, study.folder, data), cold


def measure(study: Study) -> tuple[list[Point], dict]:
    held_out, cold = held_out_study(study)
    is_cold = cold[held_out.data.splits.test.targets]
    groups = {"cold target": is_cold, "known target": ~is_cold}
    for name, members in groups.items():
        held_out.require_users(int(members.sum()), f"test users with a {name}")
    series = {}
    for way in study.recipe.unseen_items:
        places = held_out.phases("finetune")
        settings = [f"phases.{place}.objective.unseen_items={way}" for place in places]
        trained = held_out.train_seeds(settings)
        series[f"fine-tuned, cold items {NAMES[way]}"] = stack(trained)
    if series:
        texts = [rank_as_texts(held_out, open_trained(one.checkpoint)) for one in trained]
        series["its text encoder alone"] = np.stack(texts)
    series |= held_out.train_systems(study.recipe.systems) | baseline_ranks(held_out)
    facts = {"trained_on": held_out.data.dataset.fingerprint, "held_out_items": int(cold.sum())}
    return group_points(held_out, series, groups), facts


main = study_command(PARSER, ColdItemsRecipe, "Items nobody has bought before", "test target", measure)


if __name__ == "__main__":
    main()
