"""Draws the picture of README.md from a result file.

    python benchmarks/pictures.py

tests/test_pictures.py compares the picture with the result file.
"""

import json
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from vet.report.charts import pareto_front
from vet.report.drawing import BELOW, FRONT, STYLE, svg

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / 'docs/pictures/tuners.svg'
NAMED = {  # run: where its name stands, in points from its dot; the other runs have a dot without a name
    'VPT-shallow': (6, -3),
    'NormTune': (6, -3),
    'BitFit': (-6, 4),
    'DiffFit': (-6, 3),
    'SSF': (2, 6),
    'LoRA-weight': (6, 2),
    'LoRA': (7, -6),
    'Houlsby': (6, -4),
    'IA3': (6, -3),
    'AdapterPlus': (6, -3),
    'AdaptFormer-normed': (6, -3),
    'VeRA': (6, -3),
    'Partial': (6, -3),
    'Full': (-6, 6),
}


def points() -> dict[str, tuple[float, float]]:
    """{run: (trained numbers, accuracy in %)} of benchmarks/results/tuners.json, for today's code."""
    runs = json.loads((ROOT / 'benchmarks/results/tuners.json').read_text(encoding='utf-8'))['runs']
    return {
        name: (run['parameters'], 100 * run['accuracy'])
        for name, run in runs.items()
        if 'wider start' not in name
    }


def tuners() -> str:
    """The accuracy of each method over its trained numbers."""
    found = points()
    _, probe = found.pop('LinearProbe')
    front = pareto_front(found)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.8), layout='constrained')
        axes = figure.subplots()
        axes.set(
            xlabel='trained numbers, without the head; the whole network has 5.5 million',
            ylabel='test accuracy, %',
            title='Frozen DeiT-Tiny, 2,000 images of CIFAR-100, one learning rate for all methods',
            xscale='log',
            ylim=(0, 54),
        )
        axes.title.set_fontsize(10)
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.axhline(probe, color=BELOW, linewidth=1, linestyle=':')
        axes.text(1.05e6, probe + 0.8, 'linear probe: the head alone', fontsize=8, color=BELOW)
        for name, (numbers, accuracy) in found.items():
            colour = FRONT if name in front else BELOW
            axes.plot(numbers, accuracy, 'o', markersize=6, color=colour, gid=f'run-{name}')
            if name in NAMED:
                side = 'right' if NAMED[name][0] < 0 else 'left'
                axes.annotate(
                    name,
                    (numbers, accuracy),
                    textcoords='offset points',
                    xytext=NAMED[name],
                    fontsize=8,
                    horizontalalignment=side,
                )
        return svg(figure)


def main() -> None:
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(tuners(), encoding='utf-8')


if __name__ == '__main__':
    main()
