"""What a run leaves on disk, and how it survives being killed at any moment or a disk that fills up.

Nothing is ever written in place: a file or folder is written beside its final place under a temporary name and
renamed when it is whole. So whatever carries its final name is complete, and what was there before survives a failed
write.

A run's folder:

    checkpoint/ metrics.json ranks.parquet recipe.yaml log.jsonl    the result
    state/                                                          only while the run is unfinished
        recipe.json             what the run was started with, and the fingerprints of its data
        start/                  the starting encoder and tokenizer
        phase-0/                a finished phase's weights
        phase-0.json            its steps and its best validation metrics
        phase-1-best-300/       best weights so far of the phase under way (a checkpoint like any other)
        phase-1-step-400/       everything the loop needs to go on from step 400
"""

import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

from ..serving.whole_files_seqrec import (
    SEAL,
    changed_files,
    replace_folder,
    restore_folder,
    seal,
    write_json,
    written_folder,
)
from .recipe import Recipe, read_recipe, recipe_to_dict

# Settings that may differ between the interrupted run and the one that resumes it: they do not change what is learned.
FREE_TO_CHANGE = (
    "compile",
    "name",
    "system",
    "output_dir",
    "resume",
    "overwrite",
    "keep_evaluated",
    "tracker",
    "log_every",
    "save_every",
    "telemetry_every",
)


# What may stand in state/, half-written things with a dot before their names.
OWN_STATE = re.compile(r"\.|recipe\.json$|start$|result$|phase-\d+(\.json|-(best|step)-\d+)?$")
OWN_EVALUATED = re.compile(r"\.|phase-\d+-step-\d+$")


HELD_SECONDS = 10.0  # how long a killed training's workers may outlive it, and hold its folder


class PhaseEnd(NamedTuple):
    """How a phase ended: optimiser steps done, of how many, the validation metrics of the weights it left, the seconds
    it took (None: begun by code that did not count them), and the length of log.jsonl (None: likewise)."""

    steps: int
    total_steps: int
    metrics: dict[str, float]
    seconds: float | None = None
    log_bytes: int | None = None


@dataclass
class Progress:
    """Where a phase stands.

    `best_step` and `best_metrics` are of the best evaluation so far (by NDCG@10), `stale` counts evaluations since;
    `log_bytes` is the length of log.jsonl, so that a resumed run does not log twice; `seconds` is the wall time that
    led here, over all parts of an interrupted run.
    """

    step: int = 0
    best_step: int | None = None
    best_metrics: dict[str, float] | None = None
    stale: int = 0
    stopped: bool = False
    log_bytes: int = 0
    processes: int = 1
    seconds: float | None = 0.0


class RunFolder:
    """The paths of one run, and the questions asked about them."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.checkpoint = self.root / "checkpoint"
        self.metrics = self.root / "metrics.json"
        self.ranks = self.root / "ranks.parquet"
        self.recipe = self.root / "recipe.yaml"
        self.log = self.root / "log.jsonl"
        self.evaluated = self.root / "evaluated"
        self.state = self.root / "state"
        self.start = self.state / "start"
        self._handle: int | None = None

    def _hold(self) -> None:
        """Keep other trainings out until `release` or the end of this process, however it ends.

        Raises BlockingIOError where one is at work here. Windows and some network disks know no such locks.
        """
        try:
            import fcntl
        except ImportError:
            return
        handle, waited = os.open(self.root, os.O_RDONLY), time.monotonic() + HELD_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > waited:
                    os.close(handle)
                    raise BlockingIOError(
                        f"another training is at work in {self.root}: wait for it, or choose another run.output_dir"
                    ) from None
                time.sleep(0.1)
            except OSError:
                break
        self._handle = handle

    def release(self) -> None:
        """Let other trainings in."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def finished_phase(self, phase: int) -> Path:
        return self.state / f"phase-{phase}"

    def best(self, phase: int, step: int) -> Path:
        return self.state / f"phase-{phase}-best-{step}"

    def of_evaluation(self, phase: int, step: int) -> Path:
        return self.evaluated / f"phase-{phase}-step-{step}"

    def saved_step(self, phase: int, step: int) -> Path:
        return self.state / f"phase-{phase}-step-{step}"

    def is_unfinished(self) -> bool:
        return (self.state / "recipe.json").exists()

    def is_finished(self) -> bool:
        return self.metrics.exists() and not self.is_unfinished()

    def fingerprints(self) -> list[str] | None:
        """Of the data of the run that is here, as far as it says; None where it does not, or there is none."""
        if self.is_unfinished():
            return json.loads((self.state / "recipe.json").read_text(encoding="utf-8")).get("fingerprints")
        if not self.is_finished():
            return None
        record = json.loads(self.metrics.read_text(encoding="utf-8"))
        return [record["fingerprint"], *record.get("pretrain_fingerprints", [])]

    def open(self, recipe: Recipe, fingerprints: Sequence[str] | None = None) -> None:
        """Begin or continue a run here, after looking at what the folder holds already. `fingerprints`: of its data.

        Raises:
            FileExistsError: results or an unfinished run are here and neither resume nor overwrite is set, or what no
                run wrote would be overwritten.
            BlockingIOError: another training is at work here.
            ValueError: the run to be resumed was started with another recipe or on other data, or a file of its state
                is damaged.
        """
        if self.root.is_dir():
            self._hold()
        restore_folder(self.checkpoint)
        if self.is_unfinished() and recipe.run.resume:
            self._check_same_start(recipe, fingerprints)
            return self._check_seals()
        if self.is_unfinished() and not recipe.run.overwrite:
            raise FileExistsError(
                f"{self.root} holds an unfinished run: continue it with --set run.resume=true, "
                "or start again with --set run.overwrite=true"
            )
        if self.is_finished() and not recipe.run.overwrite:
            raise FileExistsError(
                f"{self.root} holds a finished run: choose another run.output_dir, or replace it with "
                "--set run.overwrite=true"
            )
        if not (recipe.run.overwrite or self.state.exists() or self.metrics.exists()):
            self._check_nothing_foreign()
        self._check_own_state()
        (self.state / "recipe.json").unlink(missing_ok=True)  # first, so that a kill leaves nothing half to resume,
        self.log.unlink(missing_ok=True)
        shutil.rmtree(self.evaluated, ignore_errors=True)
        shutil.rmtree(self.state, ignore_errors=True)  # and last, so that it leaves no log without a run
        write_json(self.state / "recipe.json", lasting_part(recipe_to_dict(recipe)) | {"fingerprints": fingerprints})
        if self._handle is None:
            self._hold()
        self.log.touch()  # a run without phases writes nothing into it

    def _check_nothing_foreign(self) -> None:
        """Where no run is, what has the name of a result is somebody else's."""
        own = (self.checkpoint, self.recipe, self.log, self.ranks, self.evaluated)
        foreign = [path.name for path in own if path.exists()]
        if foreign:
            raise FileExistsError(
                f"{self.root} holds {', '.join(foreign)}, but no run, which would overwrite them: choose another "
                "run.output_dir, or replace them with --set run.overwrite=true"
            )

    def _check_own_state(self) -> None:
        if self.evaluated.is_symlink() or self.evaluated.is_file():
            raise FileExistsError(f"{self.evaluated} is no folder of a run: move it, or choose another run.output_dir")
        for folder, own in ((self.state, OWN_STATE), (self.evaluated, OWN_EVALUATED)):
            foreign = sorted(path.name for path in folder.glob("*") if not own.match(path.name))
            if foreign:
                raise FileExistsError(
                    f"{folder} holds {foreign[0]}, which no run wrote and which would be deleted: move it, or choose "
                    "another run.output_dir"
                )

    def _check_same_start(self, recipe: Recipe, fingerprints: Sequence[str] | None) -> None:
        started = json.loads((self.state / "recipe.json").read_text(encoding="utf-8"))
        before = started.pop("fingerprints", None)  # states of earlier versions do not know
        changed = differences(started, json.loads(json.dumps(lasting_part(recipe_to_dict(recipe)))))
        if changed:
            raise ValueError(
                f"{self.root} was started with another recipe ({', '.join(changed)} differ): resume with the same "
                "one, or start again with --set run.overwrite=true"
            )
        if not before or not fingerprints:
            return
        parts = zip((recipe.data, *recipe.data.pretrain), before, fingerprints, strict=True)
        rebuilt = [part.dir or part.name for part, old, new in parts if old != new]
        if rebuilt:
            raise ValueError(
                f"{self.root} was started on other data than {' and '.join(rebuilt)} holds now: resume with the same, "
                "or start again with --set run.overwrite=true"
            )

    def _check_seals(self) -> None:
        """A damaged file would go on silently, to other weights. States of earlier versions have no seals."""
        for sealed in sorted(self.state.glob(f"[!.]*/{SEAL}")):
            if changed := changed_files(sealed.parent):
                raise ValueError(
                    f"{sealed.parent / changed[0]} is not what was saved there: start the run again with --set "
                    "run.overwrite=true, or, if it is a saved step, remove its folder to go on from before"
                )

    def check_result_of(self, recipe: Recipe) -> None:
        """Raises ValueError where the result here was made by another recipe; an earlier version's, which lacks
        settings of today, is read with what they begin with."""
        if not self.recipe.is_file():
            return
        if changed := recipe_differences(read_recipe(self.recipe), recipe):
            raise ValueError(
                f"{self.root} holds the result of another recipe ({', '.join(changed)} differ): choose another "
                "run.output_dir, or replace it with --set run.overwrite=true"
            )

    def close(self) -> None:
        """The result stands; what was needed to resume goes, first what says that there is something to resume."""
        (self.state / "recipe.json").unlink(missing_ok=True)
        shutil.rmtree(self.state, ignore_errors=True)

    def latest_step(self, phase: int) -> Path | None:
        """The newest complete saved state of a phase."""
        saved = self.state.glob(f"phase-{phase}-step-*")
        return max(saved, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)

    def prune(self, phase: int, progress: Progress) -> None:
        """Remove states and best weights that the newest state no longer refers to."""
        keep = {self.saved_step(phase, progress.step).name}
        if progress.best_step is not None:
            keep.add(self.best(phase, progress.best_step).name)
        for path in [*self.state.glob(f"phase-{phase}-step-*"), *self.state.glob(f"phase-{phase}-best-*")]:
            if path.name not in keep:
                _remove(path)

    def end_of(self, phase: int) -> PhaseEnd:
        """How a finished phase ended."""
        return PhaseEnd(**json.loads((self.state / f"phase-{phase}.json").read_text(encoding="utf-8")))

    def log_before(self, phase: int) -> int | None:
        """Bytes of log.jsonl when a phase began; None where the phase before did not say."""
        return self.end_of(phase - 1).log_bytes if phase else 0

    def training_seconds(self, phases: int) -> float | None:
        """Wall seconds of all phases, validation included; None where one did not count its own."""
        seconds = [self.end_of(phase).seconds for phase in range(phases)]
        return None if None in seconds else sum(seconds)

    def finish_phase(self, phase: int, weights: Path, end: PhaseEnd) -> None:
        """`weights` become the phase's result; its states go."""
        write_json(self.state / f"phase-{phase}.json", end._asdict())
        os.replace(weights, self.finished_phase(phase))
        for path in self.state.glob(f"phase-{phase}-*"):
            _remove(path)


def _remove(folder: Path) -> None:
    """First the seal: a folder that a kill leaves half removed is not one that was damaged."""
    (folder / SEAL).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def lasting_part(tree: dict) -> dict:
    """A resolved recipe without what may change while a run goes on."""
    return {**tree, "run": {key: value for key, value in tree["run"].items() if key not in FREE_TO_CHANGE}}


def recipe_differences(made: Recipe, wanted: Recipe) -> list[str]:
    """Dotted settings in which two recipes learn something else."""
    return differences(*(lasting_part(recipe_to_dict(one)) for one in (made, wanted)))


def differences(old: object, new: object, where: str = "") -> list[str]:
    """Dotted keys at which two trees differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{where}.{k}" if where else str(k))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, pair in enumerate(zip(old, new, strict=True)) for d in differences(*pair, f"{where}.{i}")]
    return [] if old == new else [where]


# ------------------------------------------------------------------------------------------------ the loop's state


def save_state(accelerator, folder: RunFolder, phase: int, progress: Progress) -> None:
    """Save weights (target encoder included), optimiser and random states of every process, and the progress.

    accelerate writes them because it knows what a sharded model needs; the schedule, the masks and the order of the
    batches are functions of step and seed and have no state.
    """
    target = folder.saved_step(phase, progress.step)
    if accelerator.num_processes == 1:
        with written_folder(target) as fresh:
            _write_state(accelerator, fresh, progress)
            seal(fresh)
    else:
        _save_state_together(accelerator, target, progress)
    if accelerator.is_main_process:
        folder.prune(phase, progress)
    accelerator.wait_for_everyone()


def _save_state_together(accelerator, target: Path, progress: Progress) -> None:
    """Every process writes into one temporary folder; the main process renames it when all are done."""
    fresh = target.with_name(f".{target.name}.new")
    if accelerator.is_main_process:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
    accelerator.wait_for_everyone()
    _write_state(accelerator, fresh, progress)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        seal(fresh)
        replace_folder(fresh, target)


def _write_state(accelerator, folder: Path, progress: Progress) -> None:
    accelerator.save_state(str(folder))
    if accelerator.is_main_process:
        write_json(folder / "progress.json", asdict(progress))


def whole_model(accelerator, model: nn.Module) -> nn.Module:
    """The bare model, to evaluate and save; of a sharded one a copy with all its weights, on every process."""
    bare = accelerator.unwrap_model(model)
    if not isinstance(bare, FSDPModule):
        return bare
    plain_class = next(cls for cls in type(bare).__mro__ if not issubclass(cls, FSDPModule))
    whole = plain_class(bare.config).to(accelerator.device)
    whole.load_state_dict(get_model_state_dict(bare, options=StateDictOptions(full_state_dict=True)))
    return whole


def load_state(accelerator, saved: Path) -> Progress:
    """Put model, optimiser and random states back to where `saved` was written.

    Raises:
        ValueError: the number of processes has changed (each has its own random state and its
            share of every batch).
    """
    progress = Progress(**{"seconds": None, **json.loads((saved / "progress.json").read_text(encoding="utf-8"))})
    if progress.processes != accelerator.num_processes:
        raise ValueError(
            f"the run was started with {progress.processes} process(es), this one has {accelerator.num_processes}: "
            "resume with the same number, or start again with --set run.overwrite=true"
        )
    accelerator.load_state(str(saved))
    return progress
