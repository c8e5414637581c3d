"""The tables of docs/choose.md: for each budget, the best of the measured methods. Nobody types a number."""

from collections.abc import Callable
from typing import Any

from website.methods import facts_of, grid, results

Run = dict[str, Any]
LIMITS: dict[str, tuple[Callable[[Run], float], tuple[float, ...], str]] = {
    'Trained numbers': (lambda run: run['parameters'], (10_000, 30_000, 60_000, 100_000), '{:,.0f}'),
    'Memory for the backward pass, MB': (lambda run: run['saved_bytes'] / 1e6, (20, 60, 105, 130), '{:.0f}'),
    'Seconds of a step, on 2 CPU cores': (lambda run: run['seconds'], (0.08, 0.15, 0.18, 0.21), '{:.2f}'),
    'Size of the saved folder, kB': (lambda run: run['folder_bytes'] / 1e3, (100, 200, 300, 400), '{:.0f}'),
}
BEST = 3  # methods in a row


def budgets() -> str:
    """A table for each kind of cost, from benchmarks/results/tuners.json."""
    found = results()
    settings = found['settings']
    parts = [
        f'The rows come from one comparison: DeiT-Tiny, {100 * settings["train_per_class"]:,} training '
        f'images of CIFAR-100 at {settings["pixels"]} pixels, {settings["epochs"]} epochs, one seed, one '
        'learning rate for all. The accuracy stands in brackets. Differences of a few points mean nothing, '
        'and some methods need another learning rate. [Tuners](tuners.md#measured) has all rows.'
    ]
    for title, (cost, limits, form) in LIMITS.items():
        lines = []
        for limit in limits:
            runs = {name: run for name, run in found['runs'].items() if cost(run) <= limit}
            lines.append([f'at most {form.format(limit)}', best(runs), best(runs, merged=True)])
        parts.append(grid([title, 'best measured', 'best that merges into plain weights'], lines))
    return '\n\n'.join(parts)


def best(runs: dict[str, Run], merged: bool = False) -> str:
    """The methods of the highest accuracy, best first."""
    shown = []
    for name, run in sorted(runs.items(), key=lambda item: -item[1]['accuracy']):
        tuners = [entry['type'] for entry in run['tuners']]
        if 'wider start' in name or (merged and not all(facts_of(one).merges for one in tuners)):
            continue
        shown.append(f'[{name}](methods/{tuners[0]}.md) ({100 * run["accuracy"]:.0f} %)')
    return ', '.join(shown[:BEST]) or 'none'
