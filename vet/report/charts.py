"""The drawings of the report of a run, as SVG texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from vet.report.drawing import BELOW, FRONT, STYLE, svg

POINTS = 1000  # of a curve, or of a scatter plot, at most

Record = Mapping[str, Any]  # a line of the log, or the summary of a run


def curves(records: Sequence[Record], quantity: str) -> str:
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


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The points (cost, accuracy) on the front, from the cheapest to the dearest.

    No other point has as low a cost and at least the same accuracy.
    """
    front: list[str] = []
    for name, (_, accuracy) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if not front or accuracy > points[front[-1]][1]:
            front.append(name)
    return front


def tradeoff(points: Mapping[str, tuple[float, float]], cost: str, quantity: str) -> str:
    """A quantity over a cost, for named points (cost, quantity). Points on the Pareto front have a name."""
    front = pareto_front(points)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.4), layout='constrained')
        axes = figure.subplots()
        axes.set(xlabel=cost, ylabel=quantity, xscale='log')
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        for name, (x, y) in points.items():
            axes.plot(max(x, 1e-9), y, 'o', markersize=5, color=FRONT if name in front else BELOW, zorder=3)
        axes.step(*zip(*(points[name] for name in front)), where='post', color=FRONT, linewidth=1)
        for name in front:
            axes.annotate(name, points[name], textcoords='offset points', xytext=(5, -10), fontsize=7)
        return svg(figure)


def calibration(says: np.ndarray, is_so: np.ndarray) -> str:
    """A reliability diagram. says (N,): scores in 0..1; is_so (N,): whether each statement is true."""
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
