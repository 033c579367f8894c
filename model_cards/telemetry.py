"""Did pre-training collapse? The gauges that log.jsonl has, as table rows and as a small plot."""

import json
from functools import partial
from pathlib import Path
from textwrap import fill

from ..evaluation.plots import COLOURS, save_panels

TELEMETRY = {
    "target_variance": "variance of the target vectors (0 = collapsed)",
    "effective_rank": "effective rank of the target vectors (1 = collapsed)",
    "uniformity": "uniformity of the target vectors (0 = collapsed, lower is better)",
    "alignment": "alignment of history and next item (0 = equal, 4 = opposite)",
    "ema_distance": "distance of the target encoder from the context encoder",
}


def read_telemetry(log: Path) -> dict[str, dict[int, list[tuple[int, float]]]]:
    """gauge -> phase -> (step, value) of each time that pre-training measured it; empty without pre-training."""
    if not log.is_file():
        return {}
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    gauges = {}
    for record in records:
        for name in (name for name in TELEMETRY if name in record):
            phases = gauges.setdefault(name, {})
            phases.setdefault(record.get("phase", 0), []).append((record["step"], record[name]))
    return {name: gauges[name] for name in TELEMETRY if name in gauges}


def telemetry_rows(gauges: dict) -> list[tuple[str, str, str]]:
    """(what, first value, last value) of each gauge, over all phases."""
    rows = []
    for name, phases in gauges.items():
        values = [value for points in phases.values() for _, value in points]
        rows.append((TELEMETRY[name], f"{values[0]:.4g}", f"{values[-1]:.4g}"))
    return rows


def can_draw(gauges: dict) -> bool:
    """A curve needs two measurements."""
    return any(len(points) > 1 for phases in gauges.values() for points in phases.values())


def draw_telemetry(gauges: dict, path: Path) -> None:
    """One panel a gauge, one curve a phase, as PNG."""
    panels = [partial(_draw_gauge, name=name, phases=phases) for name, phases in gauges.items()]
    save_panels(panels, path, "Collapse telemetry of pre-training")


def _draw_gauge(axes, name: str, phases: dict) -> None:
    for number, (phase, points) in enumerate(phases.items()):
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, marker=".", color=COLOURS[number % len(COLOURS)], label=f"phase {phase}")
    axes.set(title=fill(TELEMETRY[name], 38), xlabel="optimiser step", ylabel=name.replace("_", " "))
    axes.set_ylim(**{"top" if name == "uniformity" else "bottom": 0})  # where collapse lies, or as good as
    if len(phases) > 1:
        axes.legend(frameon=False)
