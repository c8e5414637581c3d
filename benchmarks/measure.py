"""Measures the numbers of README.md and docs/ again, and writes their tables. `make results` runs this.

    python benchmarks/measure.py --data-root DIR
    python benchmarks/measure.py --data-root DIR --quick

The first command needs a quiet machine, and takes under 30 minutes on 2 CPU cores. --only NAME … measures
some of the results. Those of benchmarks/speed go into the file of the host, so other hosts keep theirs.
--quick makes few rounds, writes into build/trial, and only shows that everything runs. DIR holds
flowers-102/, seed-images/ and weights/. The code must be that of a commit. Afterwards, commit the result
files and the pages.
results/tuners.json and results/float8 take hours, and are not measured again.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

from vet.benchmark import record

HERE = Path(__file__).parent
SMALL = ['--images', '256', '--pixels', '112', '--epochs', '2', '--rounds', '1']
JOBS = {  # a name, the script, its usual options, and those of a quick trial
    'imports': ('speed/imports.py', ['--rounds', '4'], ['--rounds', '2']),
    'memory': ('speed/memory.py', [], []),
    'steps': ('speed/steps.py', ['--rounds', '6'], ['--rounds', '2', '--jobs', 'vit-fp32']),
    'grid': (
        'speed/grid.py',
        ['--batches', '1', '8', '--rounds', '7'],
        ['--batches', '1', '--threads', '1', '--rounds', '2', '--jobs', 'vit-fp32'],
    ),
    'peers': ('speed/peers.py', ['--rounds', '5'], ['--rounds', '2', '--only', 'LoRA', 'BitFit']),
    'many_tuners': ('speed/many_tuners.py', ['--rounds', '5'], ['--rounds', '2', '--batch', '8']),
    'probe': (
        'speed/probe.py',
        ['--rounds', '3', '--pixels', '112'],
        ['--rounds', '1', '--pixels', '64', '--epochs', '2'],
    ),
    'images': (
        'speed/images.py',
        [*SMALL, '--counts', '1000', '3000', '10000'],
        ['--images', '64', '--pixels', '64', '--epochs', '2', '--rounds', '1', '--counts', '100'],
    ),
    'predict': ('predict.py', [], ['--images', '64', '--rounds', '1']),
    'time': ('peft_flowers.py', ['--time'], ['--time', '--seeds', '0', '--pixels', '32']),
    'quickstart': ('quickstart.py', [], ['--seeds', '1']),
    'walkthroughs': ('walkthroughs.py', [], ['--only', 'digits_multitask']),
    'ecosystem': ('ecosystem.py', [], ['--model', 'vit_tiny_patch16_224']),
    'peft_coverage': ('peft_coverage.py', [], ['--only', 'eva02_tiny']),
    'accuracy': ('peft_flowers.py', [], ['--seeds', '0', '--epochs', '1', '--pixels', '32']),
}
DATA = ('speed/probe.py', 'speed/images.py', 'peft_flowers.py', 'walkthroughs.py', 'predict.py')
WEIGHTS = DATA[:3]


def command(name: str, data_root: Path, quick: bool) -> list[str]:
    script, usual, few = JOBS[name]
    data = ['--data-root', str(data_root)] if script in DATA else []
    weights = (
        ['--checkpoint', str(data_root / 'weights/deit_tiny_patch16_224.safetensors')]
        if script in WEIGHTS
        else []
    )
    return [sys.executable, str(HERE / script), *data, *weights, *([*few, '--trial'] if quick else usual)]


def processor_seconds() -> float:
    """Of all scripts that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data-root', type=Path, required=True)
    parser.add_argument('--only', nargs='+', choices=JOBS, default=list(JOBS))
    parser.add_argument('--quick', action='store_true')
    args = parser.parse_args()
    if not args.quick:
        record.refuse_changes(HERE / 'results')
    for name in args.only:
        began = time.perf_counter()
        busy = processor_seconds()
        subprocess.run(command(name, args.data_root.resolve(), args.quick), check=True, cwd=record.ROOT)
        print(
            f'{name}: {time.perf_counter() - began:.0f} s, {processor_seconds() - busy:.0f} s of a processor',
            flush=True,
        )
    if not args.quick:
        subprocess.run([sys.executable, str(HERE / 'tables.py')], check=True, cwd=record.ROOT)


if __name__ == '__main__':
    main()
