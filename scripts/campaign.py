"""Carry out a list of runs: start what is missing, go on where it stopped, publish what is finished.

    python scripts/campaign.py recipes/campaigns/text_only.yaml --status
    python scripts/campaign.py recipes/campaigns/text_only.yaml

The same command starts a campaign and continues it; it may be killed at any time. Every run lives in runs/NAME and is
resumed from its last saved state. A run that fails or diverges does not stop the others; those that need it wait. A
finished run's record goes to results/NAME.json and its ranks to results/ranks/NAME.parquet, where `publish` says so.
"""

import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jepa4rec.training.command_line import command, command_parser

PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("campaign", type=Path, help="YAML file with the list of runs")
PARSER.add_argument("--set", nargs="+", action="extend", default=[], metavar="SECTION.KEY=VALUE", dest="settings")
PARSER.add_argument("--status", action="store_true", help="check and tell how far it is, start nothing")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

from jepa4rec.serving.whole_files_seqrec import written_files
from jepa4rec.training.recipe import Recipe, read_recipe, recipe_from_dict
from jepa4rec.training.run_folder import RunFolder, recipe_differences

ROOT = Path(__file__).resolve().parent.parent


@dataclass(kw_only=True)
class CampaignRun:
    """One run: a recipe (beside the campaign's file or above it), settings on top, and the runs it starts from."""

    name: str
    recipe: str
    set: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    publish: bool = False


@dataclass(kw_only=True)
class Campaign:
    """Runs in the order they are carried out; `set` is for all of them, before their own."""

    runs: list[CampaignRun]
    set: list[str] = field(default_factory=list)
    runs_dir: str = "runs"
    results_dir: str = "results"

    def __post_init__(self):
        seen: set[str] = set()
        for run in self.runs:
            if run.name in seen:
                raise ValueError(f"two runs are called {run.name}: every run needs a name of its own")
            missing = [name for name in run.after if name not in seen]
            if missing:
                raise ValueError(f"the run {run.name} comes after {missing[0]}, which is no run before it in the list")
            seen.add(run.name)


@dataclass
class Planned:
    """A run with its recipe read; `problem` says why it did not finish."""

    run: CampaignRun
    recipe: Recipe
    file: Path
    settings: list[str]
    record: Path | None
    problem: str | None = None

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.recipe.run.output_dir)

    @property
    def finished(self) -> bool:
        return self.folder.is_finished()


def plan(campaign: Campaign, place: Path, settings: list[str]) -> list[Planned]:
    """Read all recipes and check all that can be checked before the first run.

    Raises:
        ValueError, OSError: a recipe that does not hold together, data or a start that is not there, or a published
            record of another recipe; one sentence.
    """
    planned = []
    for run in campaign.runs:
        file = place / run.recipe
        own = [*campaign.set, *run.set, *settings, f"run.output_dir={Path(campaign.runs_dir) / run.name}"]
        own.append("run.resume=true")
        recipe = read_recipe(file, own)
        record = Path(campaign.results_dir) / f"{run.name}.json" if run.publish else None
        planned.append(Planned(run, recipe, file, own, record))
    made = {Path(one.recipe.run.output_dir) for one in planned}
    for one in planned:
        _check_data(one)
        _check_start(one, made)
        check_record(one)
    return planned


def _check_data(one: Planned) -> None:
    data = one.recipe.data
    for folder in [part.dir for part in (data, *data.pretrain) if part.dir is not None]:
        if not Path(folder).is_dir():
            raise FileNotFoundError(
                f"the run {one.run.name} reads {folder}, which is not there: build it with scripts/build_dataset.py "
                "before the campaign begins"
            )


def _check_start(one: Planned, made: set[Path]) -> None:
    """A start in the folder of another run is made by a run that this one waits for."""
    start = Path(one.recipe.model.init)
    for folder in made.intersection(start.parents):
        if folder.name not in one.run.after:
            raise ValueError(f"the run {one.run.name} starts from {start}: write {folder.name} under its `after`")


def check_record(one: Planned) -> None:
    """Raises ValueError for a record that another recipe made, whether published or still in the run's folder; an
    earlier version's, which lacks settings of today, is read with what they begin with."""
    for path in (one.record, one.folder.metrics):
        if path is None or not path.is_file():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["recipe"]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} is no record of a run ({error}): move it away") from error
        try:
            changed = recipe_differences(recipe_from_dict(found, path), one.recipe)
        except ValueError as error:  # it has a setting that is none today
            raise ValueError(f"{error}; {_another(one)}") from error
        if changed:
            raise ValueError(f"{path} was made by another recipe ({', '.join(changed)} differ): {_another(one)}")


def _another(one: Planned) -> str:
    return f"give the run {one.run.name} another name, or move the old result away"


# ------------------------------------------------------------------------------------------------ carrying out


def carry_out(planned: list[Planned], launch: Callable[[Planned], int], say: Callable[[str], Any] = print) -> bool:
    """Run what is not finished, publish what is; True when every run is finished."""
    for one in planned:
        if not one.finished:
            waits = [other.run.name for other in planned if other.run.name in one.run.after and not other.finished]
            if waits:
                one.problem = f"waits for {', '.join(waits)}"
                continue
            say(f"\n{one.run.name}: begins\n{status(planned)}")
            code = launch(one)
            if not one.finished:
                one.problem = f"failed (exit {code}); its log is {one.folder.log}"
                continue
        if one.record is not None:
            publish(one)
    say(f"\n{status(planned)}")
    return all(one.finished for one in planned)


def launch(one: Planned) -> int:
    """The run as a process of its own, resumed where it was; a crash of it is not ours."""
    settings = [word for setting in one.settings for word in ("--set", setting)]
    launcher = shlex.split(os.environ.get("CAMPAIGN_LAUNCHER", sys.executable))
    return subprocess.run(
        [*launcher, str(ROOT / "train_accelerate.py"), "--recipe", str(one.file), *settings]
    ).returncode


def publish(one: Planned) -> None:
    """The record and the ranks of a finished run, whole or not at all; a record that is there already stays."""
    if one.record.exists():
        return
    ranks = one.record.parent / "ranks" / f"{one.record.stem}.parquet"
    with written_files(ranks, one.record) as (fresh_ranks, fresh_record):
        fresh_ranks.write_bytes(one.folder.ranks.read_bytes())
        fresh_record.write_bytes(one.folder.metrics.read_bytes())


# ------------------------------------------------------------------------------------------------ telling


def status(planned: list[Planned]) -> str:
    """One line a run, and how long the rest takes, judged by finished runs of the same recipe."""
    lines, left, unknown = [], 0.0, 0
    for one in planned:
        seconds = _seconds(one)
        if one.finished:
            lines.append(f"{one.run.name:40} done     {_minutes(seconds)}")
            continue
        alike = [_seconds(other) for other in planned if other.finished and other.file == one.file]
        alike = [value for value in alike if value is not None]
        begun = _progress(one)
        lines.append(f"{one.run.name:40} {one.problem or (f'at step {begun}' if begun else 'to do')}")
        if alike:
            left += statistics.mean(alike)
        else:
            unknown += 1
    done = sum(one.finished for one in planned)
    more = f", and {unknown} runs of recipes not timed yet" if unknown else ""
    return "\n".join([*lines, f"{done} of {len(planned)} done; the rest: {_minutes(left)}{more}"])


def _seconds(one: Planned) -> float | None:
    if not one.finished:
        return None
    return json.loads(one.folder.metrics.read_text(encoding="utf-8")).get("seconds")


def _progress(one: Planned) -> int | None:
    """The step of the run's last log line."""
    try:
        lines = one.folder.log.read_text(encoding="utf-8").splitlines()
        return json.loads(lines[-1]).get("step") if lines else None
    except (OSError, ValueError):
        return None


def _minutes(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds / 60:.0f} min"


@command(PARSER, interrupted="interrupted; the same command goes on from here")
def main(options: Namespace) -> None:
    campaign = read_recipe(options.campaign, kind=Campaign)
    planned = plan(campaign, options.campaign.parent, options.settings)
    if options.status:
        print(status(planned))
        return
    if not carry_out(planned, launch):
        sys.exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the run that is under way ends with us
    main()
