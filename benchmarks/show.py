"""Rows of `latency.py` as a Markdown table, a geometric mean and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]


def geometric_mean(rows: Sequence[Row]) -> dict[str, float]:
    """``ratio`` and each ``ratio_RIVAL``: its geometric mean over the rows that have it."""
    names = dict.fromkeys(key for row in rows for key in row if _is_ratio(key))
    return {name: float(np.exp(np.mean(np.log([row[name] for row in rows if name in row])))) for name in names}


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, and the geometric means below it."""
    extra = list(dict.fromkeys(key for row in rows for key in row if _is_ratio(key) and key != "ratio"))
    rivals = [key.removeprefix("ratio_") for key in extra]
    head = ["model", "threads", "batch", "graphopt ms", "onnxruntime ms", "ratio", *rivals_head(rivals)]
    head += ["max relative error", "compile s"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        cells = [row["model"], str(row["threads"]), str(row["batch"])]
        if "error" in row:
            cells += [f"failed: {' '.join(row['error'].split())[:80]}", *[""] * (len(head) - 4)]
        else:
            cells += [f"{row['graphopt_ms']:.4g}", f"{row['onnxruntime_ms']:.4g}", f"{row['ratio']:.2f}"]
            for name in rivals:
                cells += [f"{row[f'{name}_ms']:.4g}", f"{row[f'ratio_{name}']:.2f}"]
            cells += [f"{row['max_relative_error']:.1e}", f"{row['compile_s']:.1f}"]
        lines.append(cells)
    means = geometric_mean(rows)
    said = [
        f"{name.removeprefix('ratio_') if name != 'ratio' else 'onnxruntime'} {value:.2f}"
        for name, value in means.items()
    ]
    return (
        "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        + f"\n\nGeometric means of the ratios: {', '.join(said) or 'none'}"
    )


def rivals_head(rivals: Sequence[str]) -> list[str]:
    """Two columns for each rival besides onnxruntime."""
    return [text for name in rivals for text in (f"{name} ms", f"ratio to {name}")]


def draw(rows: Sequence[Row], path: Path) -> bool:
    """A bar for each row's ratio, with its middle 80 %, to `path`; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    good = [row for row in rows if "error" not in row]
    labels = [f"{row['model']} ({row['threads']} thr., batch {row['batch']})" for row in good]
    ratios = [row["ratio"] for row in good]
    spread = [[row["ratio"] - row["ratio_p10"] for row in good], [row["ratio_p90"] - row["ratio"] for row in good]]
    figure = Figure(figsize=(7, 1 + 0.25 * len(good)), layout="constrained")
    axes = figure.subplots()
    colours = ["tab:blue" if ratio >= 1 else "tab:red" for ratio in ratios]
    axes.barh(labels, ratios, xerr=np.clip(spread, 0, None), color=colours)
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("onnxruntime's time / graphopt's time")
    figure.savefig(path)
    return True


def _is_ratio(key: str) -> bool:
    return key == "ratio" or (key.startswith("ratio_") and not key.startswith("ratio_p"))
