"""Writes the tables of this folder's scripts into docs/speed.md, between its markers, from results/: nobody types a number.

    python benchmarks/speed/tables.py
"""

import json
import re
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


def main() -> None:
    measured = [f'`python benchmarks/speed/{name}.py`\n\n' + '\n\n'.join(map(markdown, shown(json.loads(path.read_text()))))
                for name, shown in SHOWN.items() if (path := HERE / 'results' / f'{name}.json').exists()]
    text = '\n\n'.join(['<!-- measured -->', *measured, '<!-- end -->'])
    PAGE.write_text(re.sub(r'<!-- measured -->.*<!-- end -->', lambda _: text, PAGE.read_text(), flags=re.DOTALL))


if __name__ == '__main__':
    main()
