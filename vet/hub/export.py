"""Writes a trained model in the format of another library. The formats are `FORMATS` of vet/hub/formats."""

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images
from torch import nn

import vet
from vet.config import Views
from vet.core.augmented import averaged
from vet.core.model import ImageClassifier
from vet.errors import UnknownNameError, UserError
from vet.files import refuse_input, sync, writing
from vet.hub.folders import read_folders
from vet.hub.formats import FORMATS
from vet.hub.formats.computation import of_pixels
from vet.hub.formats.format import Format, GraphFormat, Network
from vet.hub.formats.int8 import quantise
from vet.hub.names import find_folder
from vet.lock import FileLock
from vet.transforms.torchvision import build_transform


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    difference: the largest difference between the outputs of the file and of the model, on real images.
    """

    format: str
    path: Path
    bytes: int
    difference: float

    def __str__(self) -> str:
        return f'{self.format}: {self.path}, {self.bytes:,} bytes, max difference {self.difference:.1e}'


def export(
    folder: str | Path,
    path: str | Path,
    to: str = 'backbone',
    task: str | None = None,
    backbone: str | Path | None = None,
    with_preprocessing: bool = False,
    int8: bool = False,
) -> Exported:
    """Writes the model of a folder in the format `to`.

    to: 'backbone', 'timm', 'torchvision', 'onnx', 'torch-export' or 'peft'.
    task: the task to export, for a model of several tasks.
    backbone: where the backbone's weights are now, if they have moved.
    with_preprocessing: for onnx and torch-export. The graph takes uint8 RGB images (batch, height, width, 3)
        of any size, and gives the scores of `pipeline` (batch, K). Resize, crop and test-time augmentation
        are in the graph.
    int8: for onnx. The weights of linear layers have 8 bits, see vet/hub/formats/int8.py. vet compares the
        graph with the model before this step. After this step, vet only reports the difference.
    The library of the format reads the written file back. The file appears at `path` only if it then computes
    the same as the model. vet compares the outputs for three images: scikit-learn's two photographs, and the
    first photograph mirrored. vet takes one image at a time, and all three together. The file holds class
    names, objective, preprocessing and the backbone's identity as the JSON text 'vet' (vet.json in a .pt2
    file).
    UserError if the format cannot hold the model.
    """
    if to not in FORMATS:
        raise UnknownNameError('export format', to, FORMATS)
    made = FORMATS[to]
    path = Path(path)
    folder = find_folder(folder)
    _check(to, made, path)
    several, transforms, views = read_folders(folder, backbone)
    weights = [classifier.backbone.origin.get('checkpoint') for classifier in several.tasks.values()]
    refuse_input('the output', path, [*folder.iterdir(), *filter(None, weights)])
    if int8 and (to != 'onnx' or with_preprocessing):
        raise UserError(
            f'int8 is for onnx without preprocessing; given: {to}'
            f'{" with preprocessing" * with_preprocessing}. Leave int8 out.'
        )
    model: ImageClassifier = several.for_task(task).requires_grad_(False).eval()
    about = _about(model, to, transforms[task], views[task], with_preprocessing)
    preprocessing = vars(model.backbone.preprocessing)
    if with_preprocessing:
        if not isinstance(made, GraphFormat):
            raise UserError(
                f'{to} holds weights and no preprocessing; --with-preprocessing is for --to onnx and '
                'torch-export.'
            )
        view = build_transform(model.objective.evaluation_transform(transforms[task]), **preprocessing)
        write = partial(made.write_graph, of_pixels(model, view, views[task]), model)
        given, expected = _of_pixels(model, view, views[task])
    else:
        # a file takes images of one size, without windows
        seen = (
            [dict(type='Resize', size=list(preprocessing['size']))]
            if model.objective.dense
            else transforms[task]
        )
        write = partial(made.write, model)
        given, expected = _of_images(made.part(model), build_transform(seen, **preprocessing))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f'.{path.name}.', suffix='.tmp', dir=path.parent) as temporary:
            written = Path(temporary) / path.name
            write(written, about)
            try:
                network = made.read(written, model)
                difference = _difference(network, given, expected)
            except Exception as error:  # another library can raise any error
                raise UserError(
                    f'the file exported to {to} cannot be read back: {type(error).__name__}: '
                    f'{" ".join(str(error).split())[:300]} Nothing was written.'
                ) from error
            allowed = made.tolerance * max(1.0, *(outputs.abs().max().item() for outputs in expected))
            if not difference <= allowed:  # in this form, nan is refused too
                raise UserError(
                    f'the file exported to {to} does not compute like the model: the outputs differ by '
                    f'{difference:.1e}; allowed: {allowed:.1e}. Nothing was written.'
                )
            if int8:
                difference = _quantised(written, made, model, given, expected)
            # files stand before their folder, <file>.data before <file>
            entries = sorted(Path(temporary).rglob('*'), reverse=True)
            size = sum(entry.stat().st_size for entry in entries if entry.is_file())
            for entry in entries:  # torch's and ONNX's writers do not wait until the data are on the disk
                sync(entry)
            with FileLock(path.parent).held():  # another process may put <file>.data and <file> there now
                for entry in sorted(Path(temporary).iterdir(), reverse=True):
                    os.replace(entry, path.parent / entry.name)
            sync(path.parent)
    return Exported(to, path, size, difference)


def _quantised(
    path: Path, made: Format, model: ImageClassifier, given: 'Batches', expected: 'Batches'
) -> float:
    """Quantises the graph at `path`. Returns the largest difference to the model."""
    quantise(path)
    return _difference(made.read(path, model), given, expected)


@torch.no_grad()
def _difference(network: Network, given: 'Batches', expected: 'Batches') -> float:
    """The largest difference between the outputs of `network` and those of the model."""
    return max((network(batch) - outputs).abs().max().item() for batch, outputs in zip(given, expected))


def _about(model: ImageClassifier, to: str, transform: object, tta: Views, with_preprocessing: bool) -> str:
    """The facts about the model that the file holds, as JSON."""
    return json.dumps(
        dict(
            vet_version=vet.__version__,
            format=to,
            classes=model.classes,
            objective=model.objective.entry(),
            preprocessing=vars(model.backbone.preprocessing),
            with_preprocessing=with_preprocessing,
            transform=transform,
            tta=vars(tta),
            backbone={key: value for key, value in model.backbone.origin.items() if key != 'checkpoint'},
        ),
        ensure_ascii=False,
    )


Batches = list[torch.Tensor]


def _of_images(part: nn.Module, view: Callable) -> tuple[Batches, Batches]:
    """Normalised images, one and three at a time, and the outputs of a part of the model."""
    images = torch.stack([view(image) for image in _photographs()])
    batches = [images[:1], images]
    return batches, [part(batch) for batch in batches]


def _of_pixels(model: ImageClassifier, view: Callable, tta: Views) -> tuple[Batches, Batches]:
    """uint8 images (B, H, W, 3), one and three at a time and of several sizes, and the scores of the
    model.
    """
    photographs = _photographs()
    upright = photographs[0].crop((100, 0, 400, 427))
    small = photographs[1].resize((97, 61))
    batches, scores = [], []
    for together in ([photographs[0]], photographs, [upright], [small]):
        images = torch.stack([view(image) for image in together])
        outputs = averaged(model, images, tta, model.objective)
        scores.append(model.objective.scores(outputs))
        batches.append(torch.stack([torch.from_numpy(np.array(image)) for image in together]))
    return batches, scores


def _check(to: str, made: Format, path: Path) -> None:
    if path.suffix != made.suffix and made.suffix:
        raise UserError(f'{str(path)!r} cannot be a file of {to}: give a name that ends in {made.suffix!r}.')
    if path.is_dir() or (path.exists() and not made.suffix):
        raise UserError(
            f'{str(path)!r} exists already{" as a folder" if path.is_dir() else ""}; give a new name.'
        )
    missing = [name for name in made.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f'exporting to {to} needs {" and ".join(missing)}: pip install "vision-efficient-tuning[export]".'
        )


def _photographs() -> list[Image.Image]:
    """scikit-learn's two photographs, which need no download, and the mirrored first photograph."""
    first, second = (Image.fromarray(array) for array in load_sample_images().images)
    return [first, second, ImageOps.mirror(first)]
