"""The drawings of the report of a run, as SVG texts."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from vet.report.drawing import BELOW, FRONT, STYLE, svg

POINTS = 1000  # of a curve, or of a scatter plot, at most


def curves(records: Sequence[dict[str, Any]], quantity: str) -> str:
    """A quantity of training and of validation over the steps. '' if the log does not hold the quantity."""
    names = sorted({key for record in records for key in record if key in (quantity, f'val_{quantity}')})
    if not names:
        return ''
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5, 2.6), layout='constrained')
        axes = figure.subplots()
        axes.set(xlabel='step', ylabel=quantity)
        for name in names:
            points = [(record['step'], record[name]) for record in records if name in record]
            points = points[:: -(-len(points) // POINTS)]
            label = 'validation' if name.startswith('val_') else 'training'
            axes.plot(*zip(*points), marker='.' if len(points) < 40 else None, linewidth=1.2, label=label)
        axes.legend()
        return svg(figure)


def calibration(says: np.ndarray, is_so: np.ndarray) -> str:
    """A reliability diagram. says (N,): scores in 0..1; is_so (N,): whether what has the score is true."""
    from sklearn.calibration import calibration_curve

    share, mean = calibration_curve(is_so, np.clip(says, 0, 1), n_bins=10)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6, 3.2), layout='constrained')
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=BELOW, linewidth=1, linestyle=':')
        axes.plot(mean, share, color=FRONT, marker='o', markersize=4)
        axes.set(xlabel='score', ylabel='share that is right', xlim=(0, 1), ylim=(0, 1))
        return svg(figure)


def truth_and_answer(name: str, truth: np.ndarray, answer: np.ndarray) -> str:
    """The answer over the truth for a number of each image."""
    every = -(-len(truth) // POINTS)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6, 3.2), layout='constrained')
        axes = figure.subplots()
        ends = [min(truth.min(), answer.min()), max(truth.max(), answer.max())]
        axes.plot(ends, ends, color=BELOW, linewidth=1, linestyle=':')
        axes.plot(truth[::every], answer[::every], '.', color=FRONT, markersize=4)
        axes.set(xlabel=f'{name}: truth', ylabel='answer')
        return svg(figure)
