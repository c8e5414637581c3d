"""Trains a model by a config, and prints the results."""

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vet.cli.command import Parser, add_common, add_options, command_again, run
from vet.cli.signals import imports
from vet.files import JsonObject, write_file
from vet.source import check_source
from vet.terminal import Terminal

if TYPE_CHECKING:
    from vet.engine.trainer import Trainer


def main() -> None:
    parser = Parser(description=__doc__, parents=[_place()])
    parser.add_argument(
        'config',
        help='a config file, the name of a shipped config (`vet list configs`), a model folder, or the id '
        'of a known model',
    )
    parser.add_argument('--seed', type=int, help="the seed of all random numbers (default: the config's)")
    add_common(parser)
    add_options(parser)
    args = parser.parse_args()
    run(lambda: _train(args))


def _place() -> argparse.ArgumentParser:
    """The options that say where a run writes and from where it continues."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        '--work-dir',
        metavar='DIR',
        help='the folder for all files of the run (default: work_dirs/CONFIG/TIME)',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='auto|PATH',
        help='continue from the newest checkpoint in the work folder, or from the checkpoint at PATH',
    )
    return parser


def _train(args: argparse.Namespace) -> None:
    check_source(args.config, args.cfg_options)
    work_dir, resume = _work_dir(args)
    with imports():
        from vet.builders import build_trainer
        from vet.engine.evaluate import metric_name
    trainer = build_trainer(
        model=args.config,
        work_dir=work_dir,
        cfg_options=args.cfg_options,
        seed=args.seed,
        device=args.device,
        data_root=args.data_root,
        resume=resume,
    )
    trainer.how_to_go_on = GoOn(trainer)
    summary = trainer.train()
    if trainer.accelerator.is_main_process:
        _show(summary, [metric_name(name) for name in trainer.metrics])
        print(_line_of_python(trainer))


class GoOn:
    """The command that continues a run, as a text: the command that began the run, with the run's place.

    The work folder's name is known only after the run has begun.
    """

    def __init__(self, trainer: 'Trainer'):
        self.trainer = trainer

    def __str__(self) -> str:
        place = ['--work-dir', str(self.trainer.folder.path), '--resume', 'auto']
        return command_again(_place(), place)


def _work_dir(args: argparse.Namespace) -> tuple[Path | None, str | None]:
    """(work folder, None for a new one; what to resume in it: 'auto', a checkpoint's path or None)"""
    resume = args.resume
    if resume not in (None, 'auto') and (Path(resume) / 'config.json').is_file():  # a work folder
        return Path(resume), 'auto'
    if args.work_dir:
        return Path(args.work_dir), resume
    if resume == 'auto':
        beside = Path(args.config).parent
        if (beside / 'checkpoints').is_dir():  # the config is the config.json of a run
            return beside, resume
        runs = [config.parent for config in Path('work_dirs', Path(args.config).stem).glob('*/config.json')]
        if runs:
            return max(runs, key=lambda run: run.stat().st_mtime), resume
    elif resume is not None and Path(resume).resolve().parent.name == 'checkpoints':
        return Path(resume).resolve().parents[1], resume
    return None, resume


def _show(summary: JsonObject, metrics: list[str]) -> None:
    """Prints the summary, one fact per line."""
    terminal = Terminal(markup=False, emoji=False, highlight=False)
    parameters = summary['parameters']
    before = summary.get('before') or {}
    rows = {}
    # the names are 'metric.name' or 'task/metric.name'
    for name in (name for name in summary if name.rpartition('/')[2].partition('.')[0] in metrics):
        if name in before:
            rows[f'test {name} before'] = f'{before[name]:.4f}'
        rows[f'test {name} after'] = f'{summary[name]:.4f}'
    rows['selected'] = summary['selected']
    if summary.get('validation') is not None:
        rows['best validation'] = f'{summary["validation"]:.4f}'
    rows |= {
        'trainable parameters': (
            f'{parameters["trainable"]:,} (tuners {parameters["tuners"]:,}, head {parameters["head"]:,})'
        ),
        'total parameters': f'{parameters["total"]:,}',
        'saved': f'{summary["output_bytes"]:,} bytes',
        'training': (
            f'{summary["train_seconds"]:.1f} s, {summary["epochs"]:g} epochs of '
            f'{summary["train_images"]:,} images'
        ),
        'written to': summary['work_dir'],
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        terminal.print(f'{name:{width}}  {value}', soft_wrap=True)


def _line_of_python(trainer: 'Trainer') -> str:
    """A line of Python that applies the model to an image of the dataset.

    Writes this image to example.png.
    """
    import torch
    from torchvision.transforms.v2.functional import to_pil_image

    from vet.datasets.image import open_image

    dataset: Any = trainer.data['train'] if trainer.data['test'] is None else trainer.data['test']
    example = trainer.folder.path.absolute() / 'example.png'
    data = io.BytesIO()
    image = dataset[0][0]
    (to_pil_image(image) if isinstance(image, torch.Tensor) else open_image(image)).save(data, 'PNG')
    write_file(example, data.getvalue())
    output = str(trainer.folder.output.absolute())
    task = f', task={dataset.task_of(0)!r}' if hasattr(dataset, 'task_of') else ''
    return (
        "from vet import pipeline; print(pipeline('vision-efficient-tuning', "
        f'{output!r}{task})({str(example)!r}))'
    )
