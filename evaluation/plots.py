"""Plots that several programs draw: is matplotlib there, and a figure of panels saved as one small PNG."""

import io
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

PANEL = (4.0, 2.9)  # inches
COLOURS = ("#3b6ea5", "#d9822b", "#7a7a7a")


def require_plots() -> None:
    """Raise ValueError before an hour of work, not after it, where nothing could be drawn."""
    if not can_plot():
        raise ValueError("matplotlib draws the plots and is not installed: pip install 'jepa4rec[plots]'")


def can_plot() -> bool:
    return find_spec("matplotlib") is not None


def save_panels(
    panels: Sequence[Callable], path: Path, title: str, columns: int = 3, size: tuple[float, float] = PANEL
) -> None:
    """Draw each panel, a function of its axes and of `size` inches, and save them all as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, squeeze=False, figsize=(size[0] * columns, 0.4 + size[1] * rows), layout="constrained"
    )
    try:
        for place, one in enumerate(axes.flat):
            if place < len(panels):
                panels[place](one)
                one.title.set_size("medium")
                one.spines[["top", "right"]].set_visible(False)
            else:
                one.set_axis_off()
        figure.suptitle(title)
        _save_small(figure, path)
    finally:
        plt.close(figure)


def _save_small(figure, path: Path) -> None:
    """With 64 colours a plot looks the same and takes a third of the space: records are kept in the repository."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100, format="png")
    small = Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    small.save(path, format="png", optimize=True)


def label_plainly(axis, low: float, high: float) -> None:
    """Ticks of a logarithmic axis as plain numbers: 1, 2, 5, 10, ..., or powers of ten alone where those are many."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    powers = [10**n for n in range(10)]
    fine = [m * power for power in powers for m in (1, 2, 5) if low <= m * power <= high]
    ticks = fine if len(fine) <= 6 else [n for n in powers if low <= n <= high]
    axis.set_major_locator(FixedLocator(ticks or [low, high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
