"""Writes what was measured into README.md and docs/tuners.md, between their markers, from results/: nobody types a number.

    python benchmarks/tables.py
"""

import json
import re
import statistics
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parent / 'README.md'


def quickstart() -> str:
    """LoRA against the linear probe on the quickstart's digits: mean and deviation over seeds."""
    found = json.loads((HERE / 'results' / 'quickstart.json').read_text())
    rows = ['| digits 5 to 9 (599 train, 297 test images) | accuracy, % | trained numbers | seconds |', '|---|---|---|---|']
    for tuner in dict.fromkeys(run['tuner'] for run in found['runs']):
        runs = [run for run in found['runs'] if run['tuner'] == tuner]
        accuracies = [100 * run['accuracy'] for run in runs]
        rows.append(f'| {tuner}, {len(runs)} seeds | {statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f} | '
                    f'{runs[0]["trainable"]:,} | {statistics.mean(run["seconds"] for run in runs):.1f} |')
    return '\n'.join(rows) + f'\n\n{machine(found["environment"])}; `python benchmarks/quickstart.py`.'


def flowers() -> str:
    """DeiT-Tiny on Flowers 102: vet's configs and PEFT; accuracy from the runs that were tested, time from those in turns."""
    runs = json.loads((HERE / 'results' / 'peft_flowers.json').read_text())
    rows = ['| DeiT-Tiny, Flowers 102 (1,020 train, 6,149 test images) | accuracy, % | one epoch, s, median |', '|---|---|---|']
    for side in dict.fromkeys(run['side'] for run in runs):
        own = [run for run in runs if run['side'] == side]
        tested = [f'{100 * run["accuracy"]:.2f} ({run["epochs"]} epochs)' for run in own if run['accuracy'] is not None]
        timed = [run['seconds'] for run in own if run['epochs'] == 1 and run['accuracy'] is None]
        rows.append(f'| {side} | {", ".join(tested) or "not measured"} | '
                    f'{f"{statistics.median(timed):.1f} of {len(timed)}" if timed else "not measured"} |')
    return '\n'.join(rows) + (f'\n\n{machine(runs[-1]["environment"])}; images of 224 pixels on the short side; '
                              f'`python benchmarks/peft_flowers.py`.')


def tuners() -> str:
    """Every tuner by one recipe on a part of CIFAR-100: the best first."""
    found = json.loads((HERE / 'results' / 'tuners.json').read_text())
    settings, runs = found['settings'], found['runs']
    train, test = (100 * settings[f'{split}_per_class'] for split in ('train', 'test'))
    headers = (f'DeiT-Tiny, CIFAR-100 subset ({train:,} train, {test:,} test images)', 'accuracy, %', 'trained numbers',
               's / step', 'kept for backward, MB', 'peak memory, MB', 'folder, kB')
    rows = [f'| {" | ".join(headers)} |', '|---' * len(headers) + '|']
    for name, run in sorted(runs.items(), key=lambda item: -item[1]['accuracy']):
        rows.append(f'| {name} | {100 * run["accuracy"]:.2f} | {run["parameters"]:,} | {run["seconds"]:.3f} | '
                    f'{run["saved_bytes"] / 1e6:.1f} | {run["peak_mb"]:.0f} | {run["folder_bytes"] / 1e3:.0f} |')
    environment = list(runs.values())[-1]['environment']
    return '\n'.join(rows) + (
        f'\n\n{machine(environment)}, threads: {environment["threads"]}; images of 32 pixels taken at {settings["pixels"]}, '
        f'{settings["epochs"]} epochs, seed {settings["seed"]}, the recipe and the learning rate ({settings["lr"]:g}) the same for '
        f'all, the head not counted in trained numbers; `python benchmarks/tuners.py`.')


def machine(environment: dict) -> str:
    packages = environment['packages']
    return f'{environment["cores"]} CPU cores, torch {packages["torch"]}, timm {packages["timm"]}'


TABLES = {README: {'quickstart.json': quickstart, 'peft_flowers.json': flowers},
          HERE.parent / 'docs/tuners.md': {'tuners.json': tuners}}


def main() -> None:
    for page, tables in TABLES.items():
        measured = [table() for name, table in tables.items() if (HERE / 'results' / name).exists()]
        text = '\n\n'.join(['<!-- measured -->', *measured, '<!-- end -->'])
        page.write_text(re.sub(r'<!-- measured -->.*<!-- end -->', lambda _, text=text: text, page.read_text(), flags=re.DOTALL))


if __name__ == '__main__':
    main()
