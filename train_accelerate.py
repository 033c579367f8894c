"""Train from a recipe: datasets -> starting model -> phases, all through one loop -> evaluation -> saved checkpoint.

    accelerate launch train_accelerate.py --recipe recipes/quickstart.yaml --set phases.0.lr=1.0e-4

`--recipe` and `--set section.key=value` are the only flags; without arguments it runs the quickstart. The loop is
`train_phase` with `optimiser_step` below; pre-training and fine-tuning both go through it.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from jepa4rec.training.command_line import command, command_parser

QUICKSTART = Path(__file__).resolve().parent / "recipes" / "quickstart.yaml"
PARSER = command_parser(__file__, __doc__)
PARSER.add_argument("--recipe", default=QUICKSTART, help="YAML file (default: recipes/quickstart.yaml)")
PARSER.add_argument("--set", nargs="+", action="extend", default=[], metavar="SECTION.KEY=VALUE", dest="settings")
if __name__ == "__main__":
    PARSER.parse_args()  # --help and slips are answered before torch is loaded

import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.optim import Optimizer

from jepa4rec.baselines import BASELINE_MODELS, Popularity
from jepa4rec.baselines.item_sequences import ItemSequenceModel
from jepa4rec.evaluation.metrics.seqrec_ranking.ranking_metrics import ranking_metrics
from jepa4rec.evaluation.ranking import Ranks
from jepa4rec.evaluation.records import describe_run, write_evaluation
from jepa4rec.evaluation.scorers import history_reading, measure, rank_baselines
from jepa4rec.hub.opening import open_encoder
from jepa4rec.model_cards.render import write_card
from jepa4rec.model_cards.results_table import dataset_name
from jepa4rec.serving.pipeline_catalogue import save_item_ids
from jepa4rec.serving.pipeline_item_ids import save_item_checkpoint
from jepa4rec.serving.pipeline_seqrec import save_checkpoint_files
from jepa4rec.serving.whole_files_seqrec import seal, written_folder
from jepa4rec.training.batches import Batches, to_device
from jepa4rec.training.data import RunData, load_run_data
from jepa4rec.training.estimate import estimate, in_words
from jepa4rec.training.log import RunLog, StepWatch, TrainingDiverged, check_tracker, metrics_table
from jepa4rec.training.measure import encoding_precision, evaluate_validation, make_record, rank_test_split
from jepa4rec.training.optimisation import (
    compile_token_wise,
    freeze,
    learning_rate_factor,
    make_optimizer,
    set_learning_rates,
)
from jepa4rec.training.phases import Phase, Work
from jepa4rec.training.phases.rating import rating_results
from jepa4rec.training.recipe import PACKAGE, Recipe, read_recipe, write_recipe
from jepa4rec.training.run_folder import PhaseEnd, Progress, RunFolder, load_state, save_state, whole_model
from jepa4rec.training.start import make_baseline, make_starting_checkpoint, open_model, open_tokenizer

# ------------------------------------------------------------------------------------------------ the loop


@dataclass
class Training:
    """One phase under way: everything the loop works with.

    `schedule_start` and `schedule_steps` place the phase in the course of its learning rates; `clock` is when
    `count_seconds` last read the time.
    """

    accelerator: Accelerator
    phase: Phase
    index: int
    work: Work
    model: nn.Module
    optimizer: Optimizer
    batches: Batches
    folder: RunFolder
    log: RunLog
    progress: Progress
    schedule_start: int = 0
    schedule_steps: int = 0
    clock: float = field(default_factory=time.perf_counter)

    def __post_init__(self):
        self.schedule_steps = self.schedule_steps or self.total_steps

    @property
    def total_steps(self) -> int:
        return self.phase.total_steps(len(self.batches))

    @property
    def evaluate_every(self) -> int:
        return self.phase.evaluation_interval(len(self.batches))

    def count_seconds(self) -> None:
        """Add to the progress the wall time since this was last called."""
        now = time.perf_counter()
        if self.progress.seconds is not None:
            self.progress.seconds += now - self.clock
        self.clock = now

    @property
    def bare_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)


def train_phase(training: Training) -> None:
    """Train until the phase's last step, or until validation stops improving. The best weights end up on disk."""
    progress, watch = training.progress, StepWatch()
    training.log.start_phase(f"{training.index} {training.phase.kind}", training.total_steps, progress.step)
    if progress.step == 0 and training.phase.keeps_weights:
        keep_if_best(training)
    while progress.step < training.total_steps and not progress.stopped:
        epoch, done = divmod(progress.step, len(training.batches))
        if done == 0:
            training.phase.before_epoch(training.bare_model, training.work, progress.step)
        training.model.train()
        for slices in training.batches.epoch(epoch, skip=done):
            with memory_in_words(training.accelerator.device, *step_in_words(training, slices)):
                watch.add(*optimiser_step(training, slices))
            progress.step += 1
            training.log.advance()
            watch = after_step(training, watch)
            if progress.step >= training.total_steps or progress.stopped:
                break
    training.log.end_phase()


def optimiser_step(training: Training, slices: list[dict]):
    """Forward, backward, clip, optimiser. Returns the slices' outputs and the gradient's length."""
    step, total, phase = training.progress.step, training.total_steps, training.phase
    place = (training.schedule_start + step, training.schedule_steps)
    set_learning_rates(training.optimizer, learning_rate_factor(*place, phase.warmup, phase.schedule))
    looks, outputs = training.work.recipe.run.telemetry_every, []
    telemetry = bool(looks) and (step + 1) % looks == 0
    for number, batch in enumerate(slices, start=1):
        batch = to_device(batch, training.accelerator.device)
        # Gradients travel between processes once a step, with the last slice.
        with nullcontext() if number == len(slices) else training.accelerator.no_sync(training.model):
            output = training.model(**batch, telemetry=telemetry and number == len(slices))
            training.accelerator.backward(output.loss / len(slices))
        outputs.append(output)
    longest = math.inf if phase.clip_norm is None else phase.clip_norm
    grad_norm = training.accelerator.clip_grad_norm_(training.model.parameters(), longest)
    training.optimizer.step()
    training.optimizer.zero_grad()
    phase.after_step(training.bare_model, step, total)
    return outputs, grad_norm


def step_in_words(training: Training, slices: list[dict]) -> tuple[str, str]:
    """What a step reads, and what makes it smaller."""
    size = "x".join(map(str, slices[0]["input_ids"].shape)) if "input_ids" in slices[0] else "the"
    where, phase = f"phases.{training.index}", training.phase
    return f"{where}: a batch of {size} tokens", (
        f"lower {where}.batch_size or {where}.max_items, or raise {where}.gradient_accumulation (now "
        f"{phase.batch_size}, {phase.max_items}, {phase.gradient_accumulation})"
    )


FREE_MEMORY = "free some and go on with --set run.resume=true"


@contextmanager
def memory_in_words(device: torch.device, what: str, way_out: str) -> Iterator[None]:
    """Raise ValueError where memory runs out: how much more `what` needs, and the `way_out`."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; a CPU's allocator has no class of its own
        wanted = re.search(r"(?:allocate|allocate:?) ([\d.]+ ?[KMGT]i?B|\d+ bytes)", str(error))
        if wanted is None:
            raise
        held = ""
        if device.type == "cuda":
            most, whole = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
            held = f" on top of {most / 2**30:.1f} of {whole / 2**30:.1f} GiB"
        raise ValueError(f"{what} needs {wanted[1]} more{held}, which the memory does not have: {way_out}") from error


def after_step(training: Training, watch: StepWatch) -> StepWatch:
    """Log, evaluate and save where it is time to; returns the watch, or a new one when the old one was read."""
    step, run = training.progress.step, training.work.recipe.run
    last = step == training.total_steps
    evaluate = last or step % training.evaluate_every == 0
    save = bool(run.save_every) and step % run.save_every == 0 and not last
    if not (evaluate or save or step % run.log_every == 0):
        return watch
    stop_if_diverged(training, watch)
    log_step(training, watch)
    if evaluate:
        keep_if_best(training)
    if save:
        training.progress.log_bytes = training.log.length()
        training.count_seconds()
        save_state(training.accelerator, training.folder, training.index, training.progress)
    return StepWatch()


def stop_if_diverged(training: Training, watch: StepWatch) -> None:
    """Raise TrainingDiverged, naming step and batch, before anything that is no number is saved or evaluated."""
    bad = watch.first_bad_step()
    if bad is None:
        return
    step = training.progress.step - len(watch.losses) + bad + 1
    epoch, batch = divmod(step - 1, len(training.batches))
    saved = training.folder.latest_step(training.index)
    best = training.progress.best_step
    kept = [str(path) for path in (best is not None and training.folder.best(training.index, best), saved) if path]
    raise TrainingDiverged(
        f"the loss of phase {training.index} ({training.phase.kind}) became NaN or infinite at step {step} "
        f"(epoch {epoch}, batch {batch}); kept: {', '.join(kept) or 'nothing of this phase'}; a lower lr may help"
    )


def log_step(training: Training, watch: StepWatch) -> None:
    """One record of means since the last one: loss and parts, gradient length, learning rates, speed, telemetry."""
    step, means = training.progress.step, watch.means()
    rates = {group["kind"]: group["lr"] for group in training.optimizer.param_groups}
    speed = training.phase.batch_size / means["seconds_per_step"]
    place = {"phase": training.index, "kind": training.phase.kind, "step": step, "epoch": step / len(training.batches)}
    training.log.write({**place, **means, **watch.telemetry(), "examples_per_second": speed, **rates}, step)
    training.log.show({name: means[name] for name in ("loss", *watch.part_names())})


def keep_if_best(training: Training) -> None:
    """Evaluate on the validation split; better weights than before are written down, stale ones counted."""
    progress, phase, accelerator = training.progress, training.phase, training.accelerator
    phase.before_validation(training.bare_model, training.work, progress.step)
    model = phase.result(whole_model(accelerator, training.model))
    metrics = phase.validate(accelerator, model, training.work)
    place = {"phase": training.index, "kind": phase.kind, "step": progress.step}
    training.log.write({**place, **{f"validation_{name}": value for name, value in metrics.items()}}, progress.step)
    if training.work.recipe.run.keep_evaluated:
        kept = training.folder.of_evaluation(training.index, progress.step)
        save_checkpoint(accelerator, model, training.work.tokenizer, kept)
    if progress.best_metrics is None or phase.score(metrics) > phase.score(progress.best_metrics):
        progress.best_metrics, progress.best_step, progress.stale = metrics, progress.step, 0
        save_checkpoint(
            accelerator, model, training.work.tokenizer, training.folder.best(training.index, progress.step)
        )
    else:
        progress.stale += 1
        progress.stopped = phase.patience is not None and progress.stale >= phase.patience
    training.model.train()


def save_checkpoint(accelerator: Accelerator, model: nn.Module, tokenizer, target: Path) -> None:
    """Weights, configuration, code and tokenizer, as AutoModel and AutoTokenizer load them."""
    if accelerator.is_main_process:
        write_checkpoint(model, tokenizer, target)
    accelerator.wait_for_everyone()


def write_checkpoint(model: nn.Module, tokenizer, target: Path) -> None:
    with written_folder(target) as fresh:
        if tokenizer is not None:
            save_checkpoint_files(model, tokenizer, fresh)
        elif isinstance(model, ItemSequenceModel):
            save_item_checkpoint(model, fresh)
        else:  # no vectors, so no pipeline
            model.save_pretrained(fresh)
        seal(fresh)


# ------------------------------------------------------------------------------------------------ the run


def run(recipe: Recipe) -> dict:
    """Carry out a recipe; returns what metrics.json says.

    Raises:
        ValueError, OSError: something is wrong with the recipe, the data, the folder or the disk; one sentence.
    """
    check_tracker(recipe.run.tracker)
    origin = describe_run()  # the commit that starts the run, whatever is committed while it goes on
    accelerator = make_accelerator(recipe)
    folder = RunFolder(recipe.run.output_dir)
    if recipe.run.resume and folder.is_finished():
        return show_finished(accelerator, recipe, folder)
    try:
        return carry_out(accelerator, recipe, folder, origin)
    finally:
        folder.release()


def carry_out(accelerator: Accelerator, recipe: Recipe, folder: RunFolder, origin: dict) -> dict:
    """All phases that are not finished, then the result."""
    with accelerator.main_process_first():
        data = load_run_data(recipe.data)
        check_batches(recipe, data, accelerator.num_processes)
        if accelerator.is_main_process:
            begin(recipe, data, folder)
    if accelerator.device.type == "cpu" and accelerator.num_processes == 1 and not folder.finished_phase(0).exists():
        with accelerator.autocast():  # steps and encoding take what they will take
            seconds = estimate(recipe, data, folder.start)
        if seconds:
            accelerator.print(in_words(seconds))
    log = RunLog(accelerator, folder.log)
    for index in range(len(recipe.phases)):
        if not folder.finished_phase(index).exists():
            what = f"phases.{index}, outside of its steps (items are encoded, users ranked),"
            shorter = f"phases.{index}.max_items or tokenizer.max_tokens"
            with memory_in_words(accelerator.device, what, f"{FREE_MEMORY}, or lower {shorter}"):
                run_phase(accelerator, recipe, index, data, folder, log)
    elsewhere = f"rank what is in {folder.state} by scripts/evaluate_checkpoint.py with few --batch_tokens"
    with memory_in_words(accelerator.device, "ranking the test split", f"{FREE_MEMORY}, or {elsewhere}"):
        record = finish(accelerator, recipe, data, folder, origin)
    accelerator.end_training()
    return record


def check_batches(recipe: Recipe, data: RunData, processes: int) -> None:
    """Raise ValueError when a phase's batches do not fit its data or the processes, before anything is trained."""
    for index, phase in enumerate(recipe.phases):
        examples = len(phase.examples(Work(recipe, data, None)))
        share = processes * phase.gradient_accumulation
        if examples < phase.batch_size:
            raise ValueError(
                f"phases.{index}.batch_size is {phase.batch_size}, but there are only {examples} training examples: "
                "lower it"
            )
        if phase.batch_size % share:
            raise ValueError(
                f"phases.{index}.batch_size {phase.batch_size} does not divide into {processes} process(es) × "
                f"{phase.gradient_accumulation} slices: choose a multiple of {share}"
            )


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Devices, processes and precision, as `accelerate launch` and the recipe say.

    Raises:
        ValueError: processes were launched that would each train alone.
    """
    torch.set_float32_matmul_precision("high")  # TF32 for what stays in float32 on a GPU; nothing on a CPU
    accelerator = Accelerator(
        # Without this, several processes on a machine without a GPU do not find each other.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=choose_precision(recipe.run.mixed_precision),
        log_with=None if recipe.run.tracker == "none" else recipe.run.tracker,
        project_dir=recipe.run.output_dir,
    )
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched, but accelerate sees {accelerator.num_processes}: launch with "
            "--config_file recipes/accelerate/two_processes_cpu.yaml or multi_gpu.yaml"
        )
    if recipe.run.tracker != "none":
        accelerator.init_trackers("seqrec")
    return accelerator


def choose_precision(wanted: str | None) -> str:
    """The precision to train in: "no", "bf16" or "fp16".

    Raises:
        ValueError: bf16 was asked for where the device has no instructions for it and would only be slower, or fp16 on
            a CPU, where accelerate leaves it out without a word.
    """
    has_bf16, said_by = computes_in_bf16(), "run.mixed_precision"
    if wanted in ("auto", None):  # null in recipes of earlier versions
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        wanted = launched if launched in ("bf16", "fp16") else "bf16" if has_bf16 else "no"
        said_by = "accelerate's mixed_precision"
    if wanted == "bf16" and not has_bf16:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "processor"
        raise ValueError(f"{said_by} is bf16, which this {device} does not compute in: use auto or no")
    if wanted == "fp16" and not torch.accelerator.is_available():
        raise ValueError(f"{said_by} is fp16, which only a GPU trains in: use auto or no")
    return wanted


def computes_in_bf16() -> bool:
    """Whether the device multiplies bfloat16 in hardware: a GPU that says so, AVX512-BF16 or AMX."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def show_finished(accelerator: Accelerator, recipe: Recipe, folder: RunFolder) -> dict:
    """There is nothing left to resume: tell the result again. Raises ValueError for that of another recipe."""
    folder.check_result_of(recipe)
    if accelerator.is_main_process:
        folder.close()  # a kill may have left the rest of state/
    record = json.loads(folder.metrics.read_text(encoding="utf-8"))
    accelerator.print(f"{folder.root} is finished.\n{result_table(record)}")
    return record


def begin(recipe: Recipe, data: RunData, folder: RunFolder) -> None:
    """Open the run's folder, and write down the starting model unless an interrupted run has done so."""
    folder.open(recipe, data.fingerprints)
    if folder.start.exists():
        return
    set_seed(recipe.run.seed)
    model, tokenizer = make_starting_checkpoint(recipe, data)
    if tokenizer is not None:
        check_item_positions(recipe, model, tokenizer.max_items)
    write_checkpoint(model, tokenizer, folder.start)


def check_item_positions(recipe: Recipe, model: nn.Module, max_items: int) -> None:
    """Raise ValueError when a text would hold more items than the model has positions for. `max_items`: of the
    tokenizer, for phases without their own."""
    most = model.base_model.table_sizes().get("item_position_ids", math.inf) - 1
    whole = ("tokenizer", max_items)
    read = [whole] if not recipe.phases else []
    for index, phase in enumerate(recipe.phases):
        if phase.history_decay is None:  # else items are read one by one
            read.append((f"phases.{index}", phase.max_items) if phase.max_items else whole)
    for where, items in read:
        if items > most:
            raised = ", or raise model.config.max_item_embeddings" if recipe.model.init == "scratch" else ""
            raise ValueError(
                f"{where}.max_items is {items}, but the model has positions for {most} items of a history: lower it "
                f"to at most {most}{raised}"
            )


def run_phase(
    accelerator: Accelerator, recipe: Recipe, index: int, data: RunData, folder: RunFolder, log: RunLog
) -> None:
    """Set one phase up, from its last saved state where there is one, train it, and leave its best weights."""
    training = set_up(accelerator, recipe, index, data, folder, log)
    saved = folder.latest_step(index)
    if saved is not None:
        training.progress = load_state(accelerator, saved)
    log.cut(training.progress.log_bytes)
    train_phase(training)
    training.count_seconds()
    if accelerator.is_main_process:
        progress = training.progress
        end = PhaseEnd(
            progress.step, training.total_steps, progress.best_metrics, progress.seconds, training.log.length()
        )
        folder.finish_phase(index, folder.best(index, training.progress.best_step), end)
    accelerator.free_memory()
    accelerator.wait_for_everyone()


def set_up(
    accelerator: Accelerator, recipe: Recipe, index: int, data: RunData, folder: RunFolder, log: RunLog
) -> Training:
    """Model, optimiser and batches of one phase. The phase's seed makes it independent of how the last one ended."""
    phase = recipe.phases[index]
    set_seed(recipe.run.seed + index)
    source = folder.finished_phase(index - 1) if index else folder.start
    work = Work(recipe, data, open_tokenizer(recipe, folder.start, phase), encoding_precision(accelerator))
    model = phase.open_model(source, data).to(accelerator.device)
    if phase.trains_encoder:
        model.config.history_decay = phase.history_decay
    work.made = phase.begin(model, work)
    freeze(model, phase.freeze_word_embeddings, phase.freeze_layers)
    if recipe.run.activation_checkpointing:
        model.base_model.activation_checkpointing_enable()
    if recipe.run.compile:
        compile_token_wise(model)
    rates = (phase.lr, phase.lr_items or phase.lr, phase.weight_decay, phase.betas, phase.lr_heads)
    optimizer = make_optimizer(model, *rates)
    model, optimizer = accelerator.prepare(model, optimizer)
    batches = phase.batches(work, accelerator.process_index, accelerator.num_processes)
    if accelerator.device.type == "cuda" and phase.trains_encoder:
        batches.prepare_ahead(accelerator.unwrap_model(model).base_model)
    begun = folder.log_before(index)
    progress = Progress(processes=accelerator.num_processes, log_bytes=log.length() if begun is None else begun)
    training = Training(accelerator, phase, index, work, model, optimizer, batches, folder, log, progress)
    if phase.continue_schedule:
        before = folder.end_of(index - 1)
        training.schedule_start, training.schedule_steps = before.steps, before.total_steps
    return training


def finish(accelerator: Accelerator, recipe: Recipe, data: RunData, folder: RunFolder, origin: dict) -> dict:
    """Measure the last phase's weights on the test split, beside start and baselines; write the result; tell it."""
    last = len(recipe.phases) - 1
    phase, weights = (recipe.phases[last], folder.finished_phase(last)) if recipe.phases else (None, folder.start)
    tokenizer = open_tokenizer(recipe, folder.start, phase)
    work = Work(recipe, data, tokenizer, encoding_precision(accelerator))
    baseline = recipe.model.baseline
    compare = phase is not None and recipe.evaluation.zero_shot and not baseline
    model = open_model(weights, phase, data).to(accelerator.device)
    ranks, ties = rank_test_split(accelerator, model, tokenizer, data, recipe), recipe.evaluation.ties
    results = {"metrics": ranking_metrics(ranks.by(ties))}
    if phase is None:
        # What is counted for the test split knows the targets of validation.
        judge = make_baseline(recipe, data, "validation") if baseline else model
        results["validation_metrics"] = evaluate_validation(accelerator, judge, tokenizer, data, recipe)
        if baseline and BASELINE_MODELS[baseline].predicts_ratings:
            results |= rating_results(model, work)
    else:
        results["validation_metrics"] = folder.end_of(last).metrics
        results |= phase.results(model, work)
    if compare:
        start = open_encoder(folder.start).to(accelerator.device)
        for name in ("history_decay", "catalogue_whitening"):  # before and after are read alike
            setattr(start.config, name, getattr(model.config, name))
        before = rank_test_split(accelerator, start, tokenizer, data, recipe, kept=True)
        results["zero_shot"] = ranking_metrics(before.by(ties))
    if tokenizer is not None:
        results["history"] = history_reading(model)
    if not accelerator.is_main_process:
        return results
    names, excludes = recipe.evaluation.baselines, recipe.evaluation.exclude_history
    results |= measure(ranks, rank_baselines(names, data.splits, "test", data.num_items, excludes), ties)
    results["seconds"] = folder.training_seconds(len(recipe.phases))
    record = make_record(recipe, data, accelerator, origin, results)
    publish(recipe, record, ranks, data, weights, folder)
    print(result_table(record))
    return record


def publish(recipe: Recipe, record: dict, ranks: Ranks, data: RunData, weights: Path, folder: RunFolder) -> None:
    """Put the result into the run's folder, each file whole; metrics.json, a finished run's mark, comes last."""
    staged, test = folder.state / "result", data.splits.test
    write_evaluation(staged, record, ranks.by(recipe.evaluation.ties), test.user_ids, test.targets, ranks.official)
    write_recipe(recipe, staged / folder.recipe.name)
    shutil.copy(folder.log, staged)
    with written_folder(folder.checkpoint) as fresh:
        shutil.copytree(weights, fresh, dirs_exist_ok=True)
        write_card(staged, fresh)
        if recipe.model.baseline or (recipe.phases and recipe.phases[-1].knows_items):
            counts = Popularity.fit(data.splits.train, data.num_items).counts.tolist()
            save_item_ids(fresh, data.dataset.items["item_id"].to_pylist(), counts)
        shutil.copy(PACKAGE / "LICENSE", fresh)
        write_recipe(recipe, fresh / folder.recipe.name, portable=True)
        seal(fresh)
    for path in (folder.recipe, folder.ranks, folder.metrics):
        os.replace(staged / path.name, path)
    folder.close()


def result_table(record: dict) -> str:
    rows = {"this run": record["metrics"]}
    if "zero_shot" in record:
        rows["before training"] = record["zero_shot"]
    size = f"{record['users']} users, {record['items']} items"
    heading = f"{' '.join(filter(None, dataset_name(record)))}: {size}, test split"
    table = f"\n{heading}\n{metrics_table({**rows, **record['baselines']})}"
    errors = record.get("ratings", {})
    lines = [f"{name:12} rmse {own['rmse']:.4f}  mae {own['mae']:.4f}" for name, own in errors.items()]
    return "\n".join([table, *(["\nratings, test split", *lines] if lines else [])])


@command(PARSER, "interrupted; the same command with --set run.resume=true goes on from here")
def main(options: Namespace) -> None:
    run(read_recipe(options.recipe, options.settings))


if __name__ == "__main__":
    main()
