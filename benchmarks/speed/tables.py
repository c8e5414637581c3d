"""Writes the tables of this folder's scripts, and of the suite float8, into docs/speed.md, between its markers, from results/:
nobody types a number.

    python benchmarks/speed/tables.py
"""

import json
import re
import statistics
from io import StringIO
from pathlib import Path

import images
import imports
import many_tuners
import memory
import probe
import steps
from rich import box
from rich.console import Console
from rich.table import Table

from vet.benchmark.results import read_results

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / 'docs' / 'speed.md'
SHOWN = {
    'steps': lambda found: [steps.shown(job, one) for job, one in found.items()],
    'memory': lambda found: [memory.shown(found)],
    'probe': lambda found: [probe.shown(one) for one in found.values()],
    'images': lambda found: [images.JOBS[job][1](one['found']) for job, one in found.items()],
    'many_tuners': lambda found: [many_tuners.shown(found)],
    'imports': lambda found: [imports.shown(found)]}


def markdown(table: Table) -> str:
    """Its title, and it, as a page has them."""
    title, table.title, table.box = str(table.title), None, box.MARKDOWN
    console = Console(width=400, file=StringIO(), record=True)
    console.print(table)
    lines = [re.sub(r' {2,}', ' ', line.strip()) for line in console.export_text().splitlines()]
    return '\n'.join([f'{title}:', '', *filter(None, lines)])


def float8() -> str:
    """What precision costs in accuracy: mean and deviation over seeds."""
    runs = read_results(HERE.parent / 'results' / 'float8')
    rows = ['| LoRA r=10 on DeiT-Tiny, Flowers 102 at 112 pixels, 10 epochs | accuracy, % |', '|---|---|']
    for precision in ('fp32', 'bf16', 'fp8'):
        found = [100 * run['metrics']['accuracy'] for run in runs if run['config']['train']['precision'] == precision]
        rows.append(f'| {precision}, {len(found)} seeds | {statistics.mean(found):.2f} ± {statistics.stdev(found):.2f} |')
    return '\n'.join(['`python tools/benchmark.py benchmarks/suites/float8.py`', '', *rows])


def main() -> None:
    measured = [f'`python benchmarks/speed/{name}.py`\n\n' + '\n\n'.join(map(markdown, shown(json.loads(path.read_text()))))
                for name, shown in SHOWN.items() if (path := HERE / 'results' / f'{name}.json').exists()]
    text = '\n\n'.join(['<!-- measured -->', *measured, float8(), '<!-- end -->'])
    PAGE.write_text(re.sub(r'<!-- measured -->.*<!-- end -->', lambda _: text, PAGE.read_text(), flags=re.DOTALL))


if __name__ == '__main__':
    main()
