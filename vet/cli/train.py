"""vet train: trains what a config says and shows what came of it."""

import argparse
import os
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from vet.builders import build_trainer
from vet.cli.command import add_common, add_options, run
from vet.engine.progress import console


def main() -> None:
    parser = argparse.ArgumentParser(prog='train', description=__doc__)
    parser.add_argument('config', help='a config file, a model folder, or the id of a known model')
    parser.add_argument('--work-dir', metavar='DIR', help='what the run writes (default: work_dirs/CONFIG/TIME)')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='auto|PATH',
                        help='go on from the newest checkpoint in the work folder, or from the one at PATH')
    parser.add_argument('--seed', type=int, help="the seed of everything random (default: the config's)")
    add_common(parser)
    add_options(parser)
    args = parser.parse_args()
    run(lambda: _train(args))


def _train(args: argparse.Namespace) -> None:
    trainer = build_trainer(model=args.config, work_dir=args.work_dir or _default_work_dir(args.config, args.resume),
                            cfg_options=args.cfg_options, seed=args.seed, device=args.device, data_root=args.data_root,
                            resume=args.resume)
    summary = trainer.train()
    if trainer.accelerator.is_main_process:
        _show(summary)


def _default_work_dir(config: str, resume: str | None) -> Path:
    """A new folder for each run; the newest one where a run is to go on."""
    folder = Path('work_dirs') / Path(config).stem
    runs = sorted(path for path in folder.glob('*') if path.is_dir())
    if resume == 'auto' and runs:
        return runs[-1]
    if resume not in (None, 'auto'):
        return Path(resume).resolve().parents[1]
    return folder / os.environ.get('TORCHELASTIC_RUN_ID', '').replace('none', '') / time.strftime('%Y%m%d-%H%M%S')


def _show(summary: dict[str, Any]) -> None:
    """The summary as a table, and the line of Python that uses what was trained."""
    parameters, table = summary['parameters'], Table(show_header=False, box=None)
    for name, value in (summary.get('before') or {}).items():
        table.add_row(f'test {name} before', f'{value:.4f}')
        table.add_row(f'test {name} after', f'{summary[name]:.4f}  ({summary["selected"]})')
    table.add_row('trainable parameters', f'{parameters["trainable"]:,} (tuners {parameters["tuners"]:,}, head {parameters["head"]:,})')
    table.add_row('total parameters', f'{parameters["total"]:,}')
    table.add_row('saved', f'{summary["output_bytes"]:,} bytes')
    table.add_row('training', f'{summary["train_seconds"]:.1f} s, {summary["epochs"]:g} epochs of {summary["train_images"]:,} images')
    table.add_row('written to', summary['work_dir'])
    console.print(table)
    print(f"from vet import pipeline; pipeline('vision-efficient-tuning', {summary['output']!r})(image)")
