"""What a run tells while it goes: a progress line, log.jsonl, the tracker of the user's choice, and a table."""

import importlib.util
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

TABLE_METRICS = ("recall@10", "recall@50", "ndcg@10", "ndcg@50", "mrr")


class TrainingDiverged(ValueError):
    """The loss is no longer a number."""


def check_tracker(name: str) -> None:
    """Raise ValueError when the tracker's package is missing: accelerate would only warn and track nothing."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise ValueError(f"run.tracker is {name}, which is not installed: pip install {name}, or set run.tracker=none")


class StepWatch:
    """Collects losses and their parts between two log lines, on the device: nothing waits for a copy to the host."""

    def __init__(self):
        self.losses: list[Tensor] = []
        self.parts: list[dict[str, Tensor]] = []
        self.grad_norms: list[Tensor] = []
        self.gauges: dict[str, Tensor] = {}
        self.started = time.perf_counter()

    def add(self, outputs: list, grad_norm: Tensor) -> None:
        """One optimiser step: its slices' outputs (loss, loss_parts, telemetry) and the gradient's length."""
        self.losses.append(torch.stack([output.loss.detach() for output in outputs]).mean())
        names = outputs[0].loss_parts
        self.parts.append({name: torch.stack([o.loss_parts[name] for o in outputs]).mean() for name in names})
        self.grad_norms.append(torch.as_tensor(grad_norm))
        self.gauges = outputs[-1].telemetry or self.gauges

    def first_bad_step(self) -> int | None:
        """Position, among the collected steps, of the first loss that is NaN or infinite."""
        values = torch.stack(self.losses).tolist() if self.losses else []
        return next((i for i, value in enumerate(values) if not math.isfinite(value)), None)

    def part_names(self) -> list[str]:
        return list(self.parts[0])

    def telemetry(self) -> dict[str, float]:
        """The newest gauges, if any were measured."""
        return {name: value.item() for name, value in self.gauges.items()}

    def means(self) -> dict[str, float]:
        """Mean loss, mean parts, mean gradient norm, seconds per step."""
        parts = {name: [step[name] for step in self.parts] for name in self.part_names()}
        rows = {"loss": self.losses, **parts, "grad_norm": self.grad_norms}
        means = {name: torch.stack([v.float() for v in values]).mean().item() for name, values in rows.items()}
        return {**means, "seconds_per_step": (time.perf_counter() - self.started) / len(self.losses)}


class RunLog:
    """Writes each record to log.jsonl and to the tracker, and keeps the progress line; silent off the main process."""

    def __init__(self, accelerator, path: Path):
        self.accelerator, self.path = accelerator, Path(path)
        self.bar = None

    def start_phase(self, name: str, steps: int, done: int) -> None:
        self.bar = tqdm(
            total=steps, initial=done, desc=name, unit="step", dynamic_ncols=True, mininterval=1.0,
            disable=not self.accelerator.is_main_process,
        )  # fmt: skip

    def end_phase(self) -> None:
        self.bar.close()

    def advance(self) -> None:
        self.bar.update()

    def show(self, values: dict[str, float]) -> None:
        """Put numbers at the end of the progress line, where tqdm already has speed and time to go."""
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()})

    def write(self, record: dict, step: int | None = None) -> None:
        """Append one record; its numbers also go to the tracker."""
        if self.accelerator.is_main_process:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        if step is not None:
            numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and not isinstance(v, bool)}
            numbers.pop("step", None)  # the trackers have a step of their own
            self.accelerator.log(numbers, step=step)

    def length(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def cut(self, length: int) -> None:
        """Forget what was logged after the state from which the run resumes."""
        if self.accelerator.is_main_process and self.path.exists():
            with open(self.path, "r+b") as file:
                file.truncate(min(length, self.length()))


def metrics_table(rows: dict[str, dict[str, float]]) -> str:
    """A plain-text table, one named row of metrics per line."""
    width = max(len(name) for name in rows)
    head = f"{'':{width}}  " + "  ".join(f"{name:>9}" for name in TABLE_METRICS)
    lines = [f"{name:{width}}  " + "  ".join(f"{m[k]:9.4f}" for k in TABLE_METRICS) for name, m in rows.items()]
    return "\n".join([head, *lines])
