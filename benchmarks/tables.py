"""Writes measured numbers into the pages, between their markers, from result files. Nobody types a number.

    python benchmarks/tables.py

tests/test_claims.py fails if a page differs from its result files.
"""

import json
import re
import statistics
import sys
from io import StringIO
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from vet.benchmark.results import read_results

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(HERE / 'speed')]

import gpu  # noqa: E402
import grid as speed_grid  # noqa: E402
import hosts  # noqa: E402
import images  # noqa: E402
import imports  # noqa: E402
import many_tuners  # noqa: E402
import memory  # noqa: E402
import peers  # noqa: E402
import probe  # noqa: E402
import steps  # noqa: E402
from walkthroughs import WEIGHTS  # noqa: E402

SPEED = {
    'steps': lambda found: [steps.shown(job, one) for job, one in found.items()],
    'grid': lambda found: [speed_grid.shown(found)],
    'memory': lambda found: [memory.shown(found)],
    'probe': lambda found: [probe.shown(one) for one in found.values()],
    'images': lambda found: [images.JOBS[job][1](one['found']) for job, one in found.items()],
    'peers': lambda found: [table for name, one in found.items() for table in peers.shown(name, one)],
    'gpu': lambda found: gpu.shown(found),
    'many_tuners': lambda found: [many_tuners.shown(found)],
    'imports': lambda found: [imports.shown(found)],
}


def quickstart(found: dict[str, Any]) -> str:
    """LoRA against the linear probe on the quickstart's digits: mean and deviation over seeds."""
    lines = []
    for tuner in dict.fromkeys(run['tuner'] for run in found['runs']):
        runs = [run for run in found['runs'] if run['tuner'] == tuner]
        accuracies = [100 * run['accuracy'] for run in runs]
        lines.append(
            [
                f'{tuner}, {len(runs)} seeds',
                spread(accuracies),
                f'{runs[0]["trainable"]:,}',
                f'{statistics.mean(run["seconds"] for run in runs):.1f}',
            ]
        )
    return grid(
        ['digits 5 to 9 (599 train, 297 test images)', 'accuracy, %', 'trained numbers', 'seconds'], lines
    ) + (f'\n\n{machine(found["environment"])}; `python benchmarks/quickstart.py`.')


def flowers(found: dict[str, Any]) -> str:
    """LoRA by vet and by PEFT on Flowers 102, by one recipe: mean and deviation over seeds, and the
    seconds of an epoch.
    """
    settings = found['settings']
    runs = found['runs']
    times = results('peft_flowers_time')
    lines = []
    for side in dict.fromkeys(run['side'] for run in runs):
        accuracies = [100 * run['accuracy'] for run in runs if run['side'] == side]
        seconds = [run['seconds'] for run in times['runs'] if run['side'] == side] if times else []
        lines.append(
            [
                f'{side}, {len(accuracies)} seeds',
                spread(accuracies),
                f'{statistics.median(seconds):.1f}' if seconds else 'not measured',
            ]
        )
    headers = [
        'LoRA on DeiT-Tiny, Flowers 102 (1,020 train, 6,149 test images)',
        'accuracy, %',
        'one epoch, s, median',
    ]
    return grid(headers, lines) + (
        f'\n\n{machine(runs[-1]["environment"])}; {settings["pixels"]} pixels, {settings["epochs"]} epochs, '
        'the same recipe, start and order of crops on both sides; `python benchmarks/peft_flowers.py`.'
    )


def tuners(found: dict[str, Any]) -> str:
    """Every tuner by one recipe on a part of CIFAR-100: the best first."""
    settings = found['settings']
    runs = found['runs']
    train, test = (100 * settings[f'{split}_per_class'] for split in ('train', 'test'))
    headers = [
        f'DeiT-Tiny, CIFAR-100 subset ({train:,} train, {test:,} test images)',
        'accuracy, %',
        'trained numbers',
        's / step',
        'kept for backward, MB',
        'peak memory, MB',
        'folder, kB',
    ]
    lines = [
        [
            name,
            f'{100 * run["accuracy"]:.2f}',
            f'{run["parameters"]:,}',
            f'{run["seconds"]:.3f}',
            f'{run["saved_bytes"] / 1e6:.1f}',
            f'{run["peak_mb"]:.0f}',
            f'{run["folder_bytes"] / 1e3:.0f}',
        ]
        for name, run in sorted(runs.items(), key=lambda item: -item[1]['accuracy'])
    ]
    environment = list(runs.values())[-1]['environment']
    return grid(headers, lines) + (
        f'\n\n{machine(environment)}, threads: {environment["threads"]}; images of 32 pixels, enlarged to '
        f'{settings["pixels"]}; {settings["epochs"]} epochs; seed {settings["seed"]}; '
        '`python benchmarks/tuners.py`. All rows have the same recipe and the same learning rate '
        f'({settings["lr"]:g}). The trained numbers do not count the head. The rows with "wider start" were '
        'measured before FacT and Prefix got the starts of the released code. Not measured yet: FacT and '
        'Prefix with the starts of today, Pfeiffer, AdaptFormer with normed=False, and SCT with mode="attn".'
    )


def walkthroughs(found: dict[str, Any]) -> str:
    """The configs on a few images that benchmarks/walkthroughs.py runs."""
    lines = [
        [
            f'configs/{run["config"]}.py',
            f'{run["train_images"]:,}',
            f'{run["test_images"]:,}',
            f'{100 * run["before"]:.2f}',
            f'{100 * run["accuracy"]:.2f}',
            f'{run["trainable"]:,}',
            f'{run["bytes"]:,}',
        ]
        for run in found['runs']
        if run['config'] in WEIGHTS
    ]
    headers = [
        'config',
        'train images',
        'test images',
        'before, %',
        'after, %',
        'trained numbers',
        'file, bytes',
    ]
    return grid(headers, lines) + (
        f'\n\n{machine(found["environment"])}; seed 0; `python benchmarks/walkthroughs.py`. These are '
        'walk-throughs, and no claims of accuracy: the pretraining of the weights has seen the jellyfish and '
        'the mushrooms.'
    )


def ecosystem(found: dict[str, Any]) -> str:
    """The largest difference of the logits: folders, case by case, and exports."""
    sides = found['differences']
    environment = found['environment']
    packages = environment['packages']
    lines = [[case, f'{difference:.1e}'] for case, difference in sides['ModelScope, in'].items()]
    cases = list(dict.fromkeys([*sides['PEFT, in'], *sides['PEFT, out']]))
    both = []
    for case in cases:
        differences = [sides[side].get(case) for side in ('PEFT, in', 'PEFT, out')]
        both.append([case, *('-' if number is None else f'{number:.1e}' for number in differences)])
    exports = [
        [f'`{to}`', f'{one["bytes"]:,}', f'{one["difference"]:.1e}'] for to, one in found['exports'].items()
    ]
    return '\n\n'.join(
        [
            grid(['ModelScope', 'in'], lines),
            grid(['PEFT', 'in', 'out'], both),
            f'Exports of {found["model"]} with LoRA of rank 10:',
            grid(['`--to`', 'bytes', 'difference'], exports),
            f'{machine(environment)}, peft {packages["peft"]}, onnxruntime {packages["onnxruntime"]}; '
            f'`python benchmarks/ecosystem.py`.',
        ]
    )


def peft_coverage(found: dict[str, Any]) -> str:
    """The tensors of LoRA that get a gradient, network by network: PEFT and vet."""
    lines = []
    for run in found['runs']:
        theirs = run['peft']
        ours = run['vet']
        place = f', at={run["at"]!r}' if run['at'] else ''
        lines.append(
            [
                run['name'],
                f'`{run["targets"]}`',
                theirs['refused'].replace('|', ' ') if 'refused' in theirs else _of_made(theirs),
                f'`vet.LoRA(rank={found["rank"]}{place})`',
                _of_made(ours),
                f'{ours["reached_attentions"]} of {ours["attentions"]}' if ours['attentions'] else '-',
            ]
        )
    headers = [
        'network',
        '`target_modules` of PEFT',
        'PEFT: with a gradient',
        'vet',
        'vet: with a gradient',
        'vet: attentions reached',
    ]
    environment = found['environment']
    packages = environment['packages']
    return grid(headers, lines) + (
        f'\n\n{machine(environment)}, peft {packages["peft"]}, open_clip {packages["open_clip_torch"]}; rank '
        f'{found["rank"]}, random weights; `python benchmarks/peft_coverage.py`.'
    )


def check(found: dict[str, Any]) -> str:
    """What `vet check` finds in Flowers 102, seed by seed."""
    lines = [
        [
            str(run['seed']),
            f'{100 * run["copies_found"]:.0f} %',
            str(run['wrong_labels']),
            str(run['suspects']),
            f'{100 * run["recall"]:.0f} %',
            f'{100 * run["precision"]:.0f} %',
            f'{run["seconds"]:.0f} s',
        ]
        for run in found['runs']
    ]
    headers = ['seed', 'copies found', 'wrong labels', 'named', 'found', 'of the named are wrong', 'time']
    return grid(headers, lines) + (
        f'\n\n{found["data"]}; DeiT-Tiny; {machine(found["environment"])}; `python benchmarks/check.py`.'
    )


def objectives(found: dict[str, Any]) -> str:
    """Each objective on CamVid: LoRA, the linear probe, and an answer without an image."""
    lines = []
    for objective in dict.fromkeys(run['objective'] for run in found['runs']):
        runs = [run for run in found['runs'] if run['objective'] == objective]
        guess = runs[0]['baseline']
        seeds = str(len({run['seed'] for run in runs}))
        for metric in runs[0]['test']:
            cells = [f'{guess[metric]:.3f}' if metric in guess else '-']
            for tuner in ('LinearProbe', 'LoRA'):
                values = [run['test'][metric] for run in runs if run['tuner'] == tuner]
                cells.append(spread(values, 3))
            lines.append([objective, seeds, f'`{metric}`', *cells])
    headers = ['objective', 'seeds', 'metric', 'one answer for all images', 'linear probe', 'LoRA']
    return grid(headers, lines) + (
        f'\n\n{found["data"]}; {found["runs"][0]["epochs"]} epochs; '
        f'DeiT-Tiny; {machines(found["runs"])}; `python benchmarks/objectives.py`.'
    )


def flowers_objectives(found: dict[str, Any]) -> str:
    """Calibration before and after, and vectors of several losses."""
    parts: dict[str, list[Any]] = dict(calibration=[], vectors=[], features=[])
    for run in found['runs']:
        parts[run['part']].append(run)
    lines = []
    for row in parts['calibration']:
        before = row['before']
        after = row['after']
        chosen = row['validation']
        lines.append(
            [
                row['name'],
                f'{chosen["temperature"]:.2f}',
                *(f'{old:.3f} → {new:.3f}' for old, new in (chosen['nll'], chosen['ece'])),
                f'{before["ece"]:.3f} → {after["ece"]:.3f}',
                f'{100 * before["accuracy"]:.2f} → {100 * after["accuracy"]:.2f}',
            ]
        )
    headers = [
        'calibration',
        'temperature',
        'validation loss',
        'validation `ece`',
        'test `ece`',
        'test accuracy, %',
    ]
    names = ('recall_at_1', 'recall_at_5', 'map_at_r', 'knn')
    untrained = {
        run['seed']: run['before'] for run in parts['vectors']
    }  # the losses begin with the same layer
    rows = {'untrained layer': list(untrained.values())}
    for run in parts['vectors']:
        rows.setdefault(run['name'], []).append(run)
    rows |= {'features of the frozen network': parts['features']} if parts['features'] else {}
    vectors = []
    for name, runs in rows.items():
        vectors.append([name, str(len(runs)), *(_mean_of(key, runs) for key in names)])
    headings = ['vectors', 'runs', 'recall at 1', 'recall at 5', 'mAP at R', 'vote of the 20 nearest']
    return '\n\n'.join([grid(headers, lines), grid(headings, vectors)]) + (
        f'\n\n{found["data"]}; the test images have the same classes as the training images; '
        f'{machines(found["runs"])}; `python benchmarks/flowers.py`.'
    )


def _mean_of(key: str, runs: list[dict[str, Any]]) -> str:
    """Of the rows that have the number."""
    values = [run[key] for run in runs if key in run]
    return spread(values, 3) if values else '-'


def imbalance(found: dict[str, Any]) -> str:
    """Remedies for unequal classes: the mean of the classes' accuracies, and the gain over no remedy."""
    lines = []
    for tuner in dict.fromkeys(run['tuner'] for run in found['runs']):
        of_tuner = [run for run in found['runs'] if run['tuner'] == tuner]
        plain = {run['seed']: run for run in of_tuner if run['remedy'] == 'plain'}
        for remedy in dict.fromkeys(run['remedy'] for run in of_tuner):
            runs = [run for run in of_tuner if run['remedy'] == remedy]
            means = [100 * run['test']['mean_per_class_accuracy'] for run in runs]
            base = [100 * plain[run['seed']]['test']['mean_per_class_accuracy'] for run in runs]
            gains = [mean - other for mean, other in zip(means, base)]
            lines.append(
                [tuner, remedy, str(len(runs)), spread(means), '' if remedy == 'plain' else spread(gains)]
            )
    headers = ['tuner', 'remedy', 'seeds', 'mean accuracy of the classes, %', 'gain, points']
    return grid(headers, lines) + (
        f'\n\n{found["data"]}; DeiT-Tiny; {machines(found["runs"])}; `python benchmarks/imbalance.py`.'
    )


def closed_form(found: dict[str, Any]) -> str:
    """Heads in closed form alone, and as the start of LoRA."""
    lines = []
    names = ('tuner', 'start', 'epochs', 'pixels')
    rows: dict[tuple[Any, ...], list[float]] = {}
    for run in found['runs']:
        rows.setdefault(tuple(run[name] for name in names), []).append(100 * run['accuracy'])
    for (tuner, start, epochs, pixels), accuracies in rows.items():
        shown = f'{tuner}, {start} head' if tuner == 'LoRA' or epochs else start
        lines.append([shown, str(epochs), str(pixels), str(len(accuracies)), spread(accuracies)])
    return grid(['head', 'epochs', 'pixels', 'seeds', 'test accuracy, %'], lines) + (
        f'\n\n{found["data"]}; DeiT-Tiny; {machines(found["runs"])}; `python benchmarks/closed_form.py`.'
    )


def _of_made(counted: dict[str, int]) -> str:
    return f'{counted["reached"]} of {counted["made"]}'


def float8() -> str:
    """What precision costs in accuracy: mean and deviation over seeds."""
    runs = read_results(HERE / 'results' / 'float8')
    lines = []
    for precision in ('fp32', 'bf16', 'fp8'):
        found = [
            100 * run['metrics']['accuracy']
            for run in runs
            if run['config']['train']['precision'] == precision
        ]
        lines.append([f'{precision}, {len(found)} seeds', spread(found)])
    table = grid(['LoRA r=10 on DeiT-Tiny, Flowers 102 at 112 pixels, 10 epochs', 'accuracy, %'], lines)
    return f'`python tools/benchmark.py benchmarks/suites/float8.py`\n\n{table}'


def speed() -> list[str]:
    """The tables of benchmarks/speed, each below its command."""
    blocks = [ratios()]
    for host, entries in hosts.all_hosts():
        blocks.append(f'## {host}')
        for name in SPEED:
            if one := entries.get(name):
                command = f'`python benchmarks/speed/{name}.py`, {machine(hosts.environment_of(one))}'
                blocks.append('\n\n'.join([command, *map(markdown, SPEED[name](one))]))
    return blocks


def ratios() -> str:
    """The time of vet's step against PEFT's, of each job on each host."""
    found = {host: steps.ratios(entries.get('steps', {})) for host, entries in hosts.all_hosts()}
    jobs = list(dict.fromkeys(job for shares in found.values() for job in shares))
    lines = []
    for host, shares in found.items():
        lines.append([host, *(f'{shares[job]:.2f}' if job in shares else '-' for job in jobs)])
    return grid(['x PEFT, median', *jobs], lines)


def worst_step() -> str:
    """The README's sentence about speed: the worst of all hosts and jobs."""
    found = []
    for host, entries in hosts.all_hosts():
        for job, share in steps.ratios(entries.get('steps', {})).items():
            found.append((share, job, host))
    share, job, host = max(found)
    return (
        f'A training step of LoRA took at most {share:.2f} times as long with vet as with PEFT. This is the '
        f'worst of all measured jobs and hosts: {job} on {host}. [Speed](docs/speed.md) has the tables.'
    )


def serve(found: dict[str, Any]) -> str:
    """vet serve beside pipeline, its memory, and its answers to hostile requests."""
    lines = []
    images = found['throughput']['rounds']
    for name, one, other in (
        ('32 clients, one model', 'one', 'pipeline'),
        ('8 models mixed', 'mixed', 'one'),
    ):
        ratio = statistics.median(each[one] / each[other] for each in images)
        lines.append([name, f'{ratio:.2f} times the images/s of {"one model" if other == "one" else other}'])
    if others := found.get('others'):
        for title, name in (
            (f'LitServe {others["versions"]["litserve"]}', 'litserve'),
            ('vet serve --launcher ray', 'ray'),
        ):
            one = others[f'{name}_of_vet']
            mixed = others[f'{name}_of_vet_mixed']
            of = f'{one:.2f} times the images/s of vet serve with one model, {mixed:.2f} times with 8 models'
            lines.append([f'{title}, 32 clients, the same run', of])
    half = found['throughput']['half_load']
    lines.append(
        [
            'half of the load that the server can answer',
            f'p50 {half["p50_ms"]:.0f} ms, p99 {half["p99_ms"]:.0f} ms at {half["rate"]:.1f} requests/s',
        ]
    )
    if memory := found.get('memory'):
        grown = memory['most_mib'] - memory['with_one_model_mib']
        lines.append(
            [
                f'{memory["folders"]:,} models registered, {memory["asked"]} asked, '
                f'--memory {memory["cap_mib"]}M',
                f'{memory["before_mib"]:.0f} MiB before, {memory["with_one_model_mib"]:.0f} MiB with one '
                f'model, at most {grown:.0f} MiB more',
            ]
        )
    if hostile := found.get('hostile'):
        bad = sum(hostile['hostile'].values())
        lines.append(
            [
                f'{hostile["requests"]:,} requests, {bad} of them hostile',
                f'{hostile["count_wrong"]} wrong answers, {hostile["faults"]} faults, memory '
                f'{hostile["growth"]:.3f} times before',
            ]
        )
    load = found['throughput']['load'][0]
    is_busy = load > found['throughput']['environment']['cores']
    busy = f' The machine was busy with other work, a load of {load:.0f}.' if is_busy else ''
    backbone = found.get('hostile', {}).get('backbone', 'DigitsViT')  # older results do not say the backbone
    return grid(['vet serve', 'measured'], lines) + (
        f'\n\nDeiT-Tiny with LoRA; hostile requests on {backbone}. Medians of ratios within a round.{busy} '
        f'{machine(found["throughput"]["environment"])}; '
        '`python benchmarks/serve.py`.'
    )


def results(name: str) -> Any:
    """What a file of results/ holds; None where nothing was measured."""
    path = HERE / 'results' / f'{name}.json'
    return json.loads(path.read_text()) if path.exists() else None


def spread(values: list[float], digits: int = 2) -> str:
    """Mean and sample deviation."""
    return f'{statistics.mean(values):.{digits}f}' + (
        f' ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else ''
    )


def grid(headers: list[str], lines: list[list[str]]) -> str:
    return '\n'.join(
        [
            f'| {" | ".join(headers)} |',
            '|---' * len(headers) + '|',
            *(f'| {" | ".join(line)} |' for line in lines),
        ]
    )


def markdown(table: Table) -> str:
    """A rich table, below its title, as a page has them."""
    title = str(table.title)
    table.title = None
    table.box = box.MARKDOWN
    console = Console(width=400, file=StringIO(), record=True)
    console.print(table)
    lines = [re.sub(r' {2,}', ' ', line.strip()) for line in console.export_text().splitlines()]
    return '\n'.join([f'{title}:', '', *filter(None, lines)])


def machine(environment: dict[str, Any]) -> str:
    packages = environment['packages']
    cores = (
        f'{environment["cores"]} cores of {environment["processor"]}'
        if 'processor' in environment
        else (f'{environment["cores"]} CPU cores (model not recorded)')
    )
    return f'{cores}, torch {packages["torch"]}, timm {packages["timm"]}'


def machines(runs: list[dict[str, Any]]) -> str:
    """The machines of all rows, each once."""
    return ' and '.join(dict.fromkeys(machine(run['environment']) for run in runs))


SMALL = ('pole', 'sign', 'pedestrian', 'cyclist')  # classes of few pixels


def segmentation(found: dict[str, Any]) -> str:
    """The heads for masks, on the frozen and on the tuned network: means over seeds."""
    columns = {
        'mIoU': ['mIoU'],
        'pixel accuracy': ['pixel_accuracy'],
        f'IoU of {", ".join(SMALL)}': [f'iou_per_class.{name}' for name in SMALL],
    }
    lines = []
    for tuner, head in dict.fromkeys((run['tuner'], run['head']) for run in found['runs']):
        runs = [run for run in found['runs'] if (run['tuner'], run['head']) == (tuner, head)]
        cells = []
        for names in columns.values():
            values = [run['test'][name] for run in runs for name in names]
            cells.append(f'{100 * statistics.mean(values):.1f}')
        seeds = 'seed' if len(runs) == 1 else 'seeds'
        lines.append([f'{tuner}, {head}, {len(runs)} {seeds}', *cells, f'{runs[0]["trainable"]:,}'])
    return grid(['test images of CamVid, %', *columns, 'trained numbers'], lines) + (
        f'\n\nDeiT-Tiny, {found["data"]}; {machines(found["runs"])}; `python benchmarks/segmentation.py`.'
    )


def pages() -> dict[Path, str]:
    """Each page as it should be."""
    tables = {
        'README.md': dict(quickstart=quickstart, peft_flowers=flowers),
        'docs/tuners.md': dict(tuners=tuners, walkthroughs=walkthroughs),
        'docs/ecosystem.md': dict(ecosystem=ecosystem),
        'docs/peft.md': dict(peft_coverage=peft_coverage),
        'docs/fit.md': dict(check=check),
        'docs/serving.md': dict(serve=serve),
        'docs/segmentation.md': dict(segmentation=segmentation),
        'docs/objectives.md': dict(objectives=objectives, flowers=flowers_objectives),
        'docs/imbalance.md': dict(imbalance=imbalance),
        'docs/training.md': dict(closed_form=closed_form),
    }
    measured: dict[str, list[str]] = {}
    for page, entries in tables.items():
        measured[page] = [table(found) for name, table in entries.items() if (found := results(name))]
    measured['README.md'].append(worst_step())
    measured['docs/speed.md'] = [*speed(), float8()]
    return {ROOT / page: filled((ROOT / page).read_text(), blocks) for page, blocks in measured.items()}


def filled(text: str, blocks: list[str]) -> str:
    """A page's text with the blocks between its markers."""
    inside = '\n\n'.join(['<!-- measured -->', *(blocks or ['Not measured.']), '<!-- end -->'])
    return re.sub(r'<!-- measured -->.*<!-- end -->', lambda _: inside, text, flags=re.DOTALL)


def main() -> None:
    for page, text in pages().items():
        page.write_text(text)


if __name__ == '__main__':
    main()
