"""Plots of a report, as SVG texts inside the page. The page loads nothing from anywhere else."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from vet.benchmark.cells import Cell, Result, metric
from vet.report.charts import pareto_front
from vet.report.drawing import BELOW, FRONT, STYLE, svg

CURVE_POINTS = 200  # at most


PARAMETERS = 'with head'
AGAINST = {  # a cost in COSTS: the title of its axis
    PARAMETERS: 'trained parameters, head included',
    'file, bytes': 'bytes of the model file',
    'wall time, s': 'seconds of the run',
    'peak memory, MiB': 'peak memory, MiB',
}


def accuracy_plot(cells: Mapping[str, Cell], cost: str = PARAMETERS) -> str:
    """Accuracy against a cost of measured cells, by tuner.

    Tuners on the Pareto front are blue, with a line.
    """
    points = {name: (cell.cost(cost), cell.mean) for name, cell in cells.items()}
    front = pareto_front(points)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.8, 4), layout='constrained')
        axes = figure.subplots()
        measured = metric(next(iter(cells.values())).done[0])
        axes.set(xlabel=AGAINST[cost], ylabel=f'{measured}, %')
        sizes = [size for size, _ in points.values()]
        if min(sizes) > 0:
            axes.set_xscale('log')
            axes.xaxis.set_major_locator(
                LogLocator(subs=(1, 3) if max(sizes) > 30 * min(sizes) else (1, 2, 3, 5, 7))
            )
        else:  # a logarithm has no place for 0
            axes.set_xscale('symlog', linthresh=min(filter(None, sizes), default=1))
        if min(sizes) == max(sizes):  # without a range, the axis would show nothing
            axes.set_xlim(min(sizes) / 2, max(sizes) * 2 or 1)
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        for name, (size, accuracy) in points.items():
            axes.errorbar(
                size,
                accuracy,
                cells[name].std or 0,
                fmt='o',
                markersize=5,
                capsize=2,
                elinewidth=1,
                zorder=3,
                color=FRONT if name in front else BELOW,
            )
        axes.step(*zip(*(points[name] for name in front)), where='post', color=FRONT, linewidth=1.2)
        _name_points(axes, points, front)
        return svg(figure)


def curves_plot(results: Sequence[Result]) -> str:
    """Loss and accuracy over steps, with a colour for each seed.

    Accuracy on training images is dotted. Accuracy on validation images is a full line.
    """
    measured = metric(results[0])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5, 2))
        left, right = figure.subplots(
            1, 2, gridspec_kw=dict(left=0.12, right=0.99, bottom=0.22, top=0.97, wspace=0.32)
        )
        left.set(xlabel='step', ylabel='loss')
        right.set(xlabel='step', ylabel=measured, ylim=(0, 1.02))
        for number, result in enumerate(results):
            for axes, name, style in (
                (left, 'loss', '-'),
                (right, 'accuracy', ':'),
                (right, f'val_{measured}', '-'),
            ):
                points = [(record['step'], record[name]) for record in result['curves'] if name in record]
                points = points[:: -(-len(points) // CURVE_POINTS) or 1]
                axes.plot(
                    *np.reshape(points, (-1, 2)).T,
                    style,
                    color=f'C{number % 10}',
                    linewidth=1.2,
                    marker='.' if len(points) < 20 else None,
                    markersize=4,
                )
        return svg(figure)


def classes_plot(result: Result) -> str:
    """Accuracy of each class that has test images, the worst first."""
    classes = [number for number, images in enumerate(result['images_by_class']) if images]
    classes.sort(key=lambda number: result['per_class'][number])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(min(10, 2 + 0.35 * len(classes)), 2.6), layout='constrained')
        axes = figure.subplots()
        axes.bar(
            range(len(classes)),
            [100 * result['per_class'][number] for number in classes],
            color=FRONT,
            width=0.8 if len(classes) < 100 else 1,
        )
        axes.set(ylabel='accuracy, %', ylim=(0, 100), xlim=(-0.6, len(classes) - 0.4), xlabel='class, sorted')
        shown = classes if len(classes) <= 50 else []
        axes.set_xticks(range(len(shown)), [result['class_names'][number] for number in shown], rotation=90)
        axes.grid(axis='x', visible=False)
        return svg(figure)


def confusion_plot(result: Result, classes: int) -> str:
    """For each class, the share of its test images that got each answer."""
    images = np.array(result['images_by_class'])
    matrix = np.zeros((classes, classes))
    matrix[range(len(images)), range(len(images))] = result['per_class']
    for truth, answer, count in result['confusion']:
        matrix[truth, answer] = count / images[truth]
    with matplotlib.rc_context({**STYLE, 'axes.grid': False, 'image.composite_image': False}):
        figure = Figure(figsize=(4, 3.4), layout='constrained')
        axes = figure.subplots()
        drawn = axes.imshow(100 * matrix, cmap='Blues', vmin=0, vmax=100)
        axes.set(xlabel='answer given', ylabel='true class')
        ticks = range(0, classes, 1 if classes <= 20 else 5)
        axes.set_xticks(ticks)
        axes.set_yticks(ticks)
        figure.colorbar(drawn, label='% of the class')
        return svg(figure)


def _name_points(axes: Axes, points: Mapping[str, tuple[float, float]], front: Sequence[str]) -> None:
    """Writes each name at the nearest free place to its point. A line joins the name and a far point."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    scale = 72 / figure.dpi  # pixels to points of type
    at = {name: scale * np.asarray(axes.transData.transform(point)) for name, point in points.items()}
    left, bottom, right, top = scale * np.asarray(axes.bbox.extents)
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in at.values()]
    for name in sorted(at, key=lambda name: name not in front):
        width = 5.4 * len(name)
        x, y = at[name]  # about the width of sans-serif type of 9 points
        # names on the front keep off the line
        rows = [
            (reach + 4, -reach - 4, 0) if name in front else (0, reach, -reach) for reach in range(6, 200, 6)
        ]
        boxes = [
            (x + dx, y + dy - 5, x + dx + width, y + dy + 5)
            for row in rows
            for dy in row
            for dx in (6, -6 - width, max(row), -max(row) - width, -width / 2)
        ]
        box = boxes[0]
        for place in boxes:
            inside = left <= place[0] and place[2] <= right and bottom <= place[1] and place[3] <= top
            if inside and not any(_overlap(place, other) for other in taken):
                box = place
                break
        taken.append(box)
        near = abs(box[1] + 5 - y) < 12
        axes.annotate(
            name,
            points[name],
            xytext=(box[0] - x, box[1] + 5 - y),
            textcoords='offset points',
            va='center',
            color=FRONT if name in front else 'black',
            bbox=dict(boxstyle='square,pad=0', facecolor='white', edgecolor='none', alpha=0.8),
            arrowprops=None
            if near
            else dict(arrowstyle='-', color=BELOW, linewidth=0.5, shrinkA=0, shrinkB=3),
        )


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two boxes (left, bottom, right, top) overlap."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
