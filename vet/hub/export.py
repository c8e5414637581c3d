"""Writes a trained model in the format of another library. The formats are `FORMATS` of vet/hub/exports."""

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

import vet
from vet.errors import UnknownNameError, UserError
from vet.files import sync, writing
from vet.hub.exports import FORMATS
from vet.hub.exports.format import Format
from vet.hub.folders import read_folder
from vet.hub.names import find_folder
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
) -> Exported:
    """Writes the model of a folder in the format `to`.

    to: 'backbone', 'timm', 'torchvision', 'onnx', 'torch-export' or 'peft'.
    task: the task to export, for a model of several tasks.
    backbone: where the backbone's weights are now, if they have moved.
    The library of the format reads the written file back. The file appears at `path` only if it then computes
    the same as the model. vet compares on scikit-learn's two photographs and the mirrored first, prepared as
    the model's images
    are: one image at a time, and all three together. The file holds class names, objective, preprocessing and
        the backbone's
    identity as the JSON text 'vet' (vet.json in a .pt2 file).
    UserError if the format cannot hold the model.
    """
    if to not in FORMATS:
        raise UnknownNameError('export format', to, FORMATS)
    made = FORMATS[to]
    path = Path(path)
    folder = find_folder(folder)
    _check(to, made, path)
    several, transform = read_folder(folder, backbone)
    model = several.for_task(task).requires_grad_(False).eval()
    preprocessing = vars(model.backbone.preprocessing)
    identity = {key: value for key, value in model.backbone.origin.items() if key != 'checkpoint'}
    about = json.dumps(
        dict(
            vet_version=vet.__version__,
            format=to,
            classes=model.classes,
            objective=model.objective.entry(),
            preprocessing=preprocessing,
            transform=transform,
            backbone=identity,
        ),
        ensure_ascii=False,
    )
    # a file takes images of one size, without windows
    seen = [dict(type='Resize', size=list(preprocessing['size']))] if model.objective.dense else transform
    images = _photographs(build_transform(seen, **preprocessing))
    batches = images[:1], images
    with torch.no_grad():
        expected = [made.part(model)(batch) for batch in batches]
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f'.{path.name}.', suffix='.tmp', dir=path.parent) as temporary:
            written = Path(temporary) / path.name
            made.write(model, written, about)
            try:
                network = made.read(written, model)
                with torch.no_grad():
                    difference = max(
                        (network(batch) - outputs).abs().max().item()
                        for batch, outputs in zip(batches, expected)
                    )
            except Exception as error:  # another library can raise any error
                raise UserError(
                    f'what was exported to {to} cannot be read back: {type(error).__name__}: '
                    f'{" ".join(str(error).split())[:300]} Nothing was written.'
                ) from error
            allowed = made.tolerance * max(1.0, *(outputs.abs().max().item() for outputs in expected))
            if not difference <= allowed:  # in this form, nan is refused too
                raise UserError(
                    f'what was exported to {to} is not the model: read back, its outputs differ by '
                    f'{difference:.1e}; allowed: {allowed:.1e}. Nothing was written.'
                )
            # files stand before their folder, <file>.data before <file>
            parts = sorted(Path(temporary).rglob('*'), reverse=True)
            size = sum(part.stat().st_size for part in parts if part.is_file())
            for part in parts:  # torch's and ONNX's writers do not wait until the data are on the disk
                sync(part)
            for part in sorted(Path(temporary).iterdir(), reverse=True):
                os.replace(part, path.parent / part.name)
            sync(path.parent)
    return Exported(to, path, size, difference)


def _check(to: str, made: Format, path: Path) -> None:
    if path.suffix != made.suffix and made.suffix:
        raise UserError(
            f'{str(path)!r} is to be a file of {to}, whose name ends in {made.suffix!r}; give such a name.'
        )
    if path.is_dir() or (path.exists() and not made.suffix):
        raise UserError(
            f'{str(path)!r} exists already{" as a folder" if path.is_dir() else ""}; give a new name.'
        )
    missing = [name for name in made.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f'exporting to {to} needs {" and ".join(missing)}: pip install "vision-efficient-tuning[export]".'
        )


def _photographs(view: Any) -> torch.Tensor:
    """(3, 3, H, W): scikit-learn's two photographs, which need no download, and the mirrored first
    photograph.
    """
    first, second = (Image.fromarray(array) for array in load_sample_images().images)
    return torch.stack([view(image) for image in (first, second, ImageOps.mirror(first))])
