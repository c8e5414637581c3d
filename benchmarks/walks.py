"""Counts the files of vet that each walk of docs/architecture.md crosses, and the functions under a Linear.

    python benchmarks/walks.py

A file counts if one of its functions is called in a walk, in any thread. Imports do not count: each walk is
walked once before. The functions are the Python functions that one forward of a Linear under LoRA enters, in
training, with those of torch.
"""

import contextlib
import inspect
import io
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from PIL import Image
from torch import nn

import vet
from vet import TUNERS, pipeline
from vet.backbones.digits import DigitsViT
from vet.cli.vet import main as run_vet
from vet.core.coverage import report
from vet.core.merge import merge_tuners, unmerge_tuners

CONFIG = Path(__file__).parents[1] / 'configs' / 'quickstart.py'
HOME = Path(vet.__file__).parent


def entered(walk: Callable[[], object]) -> list[str]:
    """The files of the Python functions that a walk enters, one for each call."""
    files: list[str] = []

    def note(frame: FrameType, event: str, arg: object) -> None:
        if event == 'call' and frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # no module and no class body
            files.append(frame.f_code.co_filename)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        walk()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return files


def of_vet(files: list[str]) -> list[str]:
    """The different files of vet among these, below vet/."""
    paths = {Path(file) for file in files}
    return sorted(path.relative_to(HOME).as_posix() for path in paths if path.is_relative_to(HOME))


def train(folder: Path) -> None:
    """From a config to a folder: one epoch of the quickstart."""
    sys.argv = ['vet', 'train', str(CONFIG), '--work-dir', str(folder / str(len(os.listdir(folder))))]
    sys.argv += ['--device', 'cpu', '--cfg-options', 'train.max_epochs=1']
    with contextlib.redirect_stdout(io.StringIO()):
        run_vet()


def tuner_life() -> None:
    """A tuner's life: attach, coverage, prepare, one step, the state, merge, unmerge, detach."""
    backbone = DigitsViT()
    tuner = TUNERS.build(dict(type='LoRA', rank=2))
    tuner.attach(backbone)
    report([tuner])
    images = torch.rand(4, 3, *backbone.preprocessing.size)
    tuner.prepare([(images, torch.zeros(4, dtype=torch.long))])
    tuner.train()
    backbone(images).square().mean().backward()
    tuner.on_step(1.0)
    assert tuner.penalty() is None and tuner.state()
    unmerge_tuners(backbone, [tuner], merge_tuners(backbone, [tuner]))
    tuner.detach()


def linear() -> tuple[nn.Linear, torch.Tensor]:
    """A Linear of a network under LoRA, and its input."""
    backbone = DigitsViT()
    TUNERS.build(dict(type='LoRA', rank=2)).attach(backbone)
    layer = backbone.network.blocks[0].attn.qkv
    return layer.train(), torch.rand(8, 17, layer.in_features)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
        train(folder)
        walks: dict[str, Callable[[], object]] = {
            'from an image to scores': lambda: pipeline(folder / '0', device='cpu')(image),
            'from a config to a folder': lambda: train(folder),
            "a tuner's life": tuner_life,
        }
        for title, walk in walks.items():
            walk()
            files = of_vet(entered(walk))
            print(f'{title}: {len(files)} files\n  {" ".join(files)}')
    layer, x = linear()
    layer(x)
    files = entered(lambda: layer(x))[1:]  # without the lambda
    print(f'a Linear under LoRA: {len(files)} functions in {len(set(files))} files')


if __name__ == '__main__':
    main()
