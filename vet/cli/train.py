"""vet train: trains what a config says and shows what came of it."""

import argparse
import os
import time
from pathlib import Path
from typing import Any

from vet.builders import build_trainer
from vet.cli.command import add_common, add_options, run
from vet.datasets.image import open_image
from vet.engine.progress import console
from vet.engine.trainer import Trainer
from vet.registry import METRICS


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
        _show(summary, [METRICS.find(name).__name__ for name in trainer.settings.evaluation.metrics])
        print(_line_of_python(trainer))


def _default_work_dir(config: str, resume: str | None) -> Path:
    """A new folder for each run; the newest one where a run is to go on."""
    folder = Path('work_dirs') / Path(config).stem
    runs = sorted(path for path in folder.glob('*') if path.is_dir())
    if resume == 'auto' and runs:
        return runs[-1]
    if resume not in (None, 'auto'):
        return Path(resume).resolve().parents[1]
    return folder / os.environ.get('TORCHELASTIC_RUN_ID', '').replace('none', '') / time.strftime('%Y%m%d-%H%M%S')


def _show(summary: dict[str, Any], metrics: list[str]) -> None:
    """The summary, one fact a line."""
    parameters, before = summary['parameters'], summary.get('before') or {}
    rows = {}
    for name in (name for name in metrics if name in summary):
        if name in before:
            rows[f'test {name} before'] = f'{before[name]:.4f}'
        rows[f'test {name} after'] = f'{summary[name]:.4f}  ({summary["selected"]})'
    rows |= {
        'trainable parameters': f'{parameters["trainable"]:,} (tuners {parameters["tuners"]:,}, head {parameters["head"]:,})',
        'total parameters': f'{parameters["total"]:,}',
        'saved': f'{summary["output_bytes"]:,} bytes',
        'training': f'{summary["train_seconds"]:.1f} s, {summary["epochs"]:g} epochs of {summary["train_images"]:,} images',
        'written to': summary['work_dir']}
    width = max(map(len, rows))
    for name, value in rows.items():
        console.print(f'{name:{width}}  {value}', soft_wrap=True, markup=False, emoji=False)


def _line_of_python(trainer: Trainer) -> str:
    """What uses the result, on an image of the dataset, which is put beside it: runs as it stands."""
    dataset: Any = trainer.data['train'] if trainer.data['test'] is None else trainer.data['test']
    example = trainer.folder.path.absolute() / 'example.png'
    open_image(dataset[0][0]).save(example)
    output = str(trainer.folder.output.absolute())
    return f"from vet import pipeline; print(pipeline('vision-efficient-tuning', {output!r})({str(example)!r}))"
