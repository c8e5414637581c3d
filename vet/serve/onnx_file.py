"""OpenedFile: an ONNX file of `vet export --to onnx` in memory. onnxruntime computes it."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vet.core.augmented import averaged, read_tta
from vet.core.model import ImageClassifier
from vet.core.objective import Answer, Objective, build_objective
from vet.core.tensor_file import sha256_of
from vet.datasets.base import errors_named
from vet.datasets.image import open_image
from vet.errors import DataError, UserError
from vet.hub.onnx_graph import OnnxGraph
from vet.pipelines import Options, Seen, told
from vet.serve.opened import Opened
from vet.serve.sources import Mark
from vet.transforms.torchvision import build_transform

AGAIN = 'Export the model again: vet export MODEL FILE.onnx --to onnx.'


class OpenedFile(Opened):
    """A model whose graph takes normalised images and gives the outputs of the objective.

    DataError for a file that `vet export` did not write, or that holds its preprocessing. UserError without
    onnxruntime.
    """

    def __init__(self, name: str, path: Path, mark: Mark):
        if importlib.util.find_spec('onnxruntime') is None:
            raise UserError(
                f'{str(path)!r} needs onnxruntime: pip install "vision-efficient-tuning[export]".'
            )
        try:
            self._graph = OnnxGraph(path)
            about = json.loads(self._graph.about['vet'])
        except Exception as error:  # onnxruntime raises errors of many kinds for a broken file
            raise DataError(f'{str(path)!r} is no ONNX file of vet ({error}). {AGAIN}') from error
        if self._graph.gives != 'logits':
            raise DataError(f'{str(path)!r} holds its preprocessing, which vet serve does itself. {AGAIN}')
        self.name = name
        self.mark = mark
        self.lane = f'{name} alone'
        self.version = sha256_of(path.read_bytes())[:12]
        self.bytes = 2 * sum(size for *_, size in mark)
        self._objective = build_objective(about['objective'], about['classes'])
        if self._objective.dense:
            raise DataError(f'{str(path)!r} gives masks, for which vet serve needs the model folder.')
        self._about = about
        self._gray_range = about['preprocessing'].get('gray_range')
        self._view = build_transform(
            self._objective.evaluation_transform(about['transform']), **about['preprocessing']
        )
        self._tta = read_tta(about.get('tta'), repr(str(path)))

    @property
    def tasks(self) -> list[str]:
        return []

    def for_task(self, task: str | None) -> ImageClassifier:
        raise UserError('an ONNX file has no layers to look into. Serve the model folder.')

    def objective(self, task: str | None) -> Objective:
        if task is not None:
            raise UserError(f'task is {task!r}, but the model has one task without a name; leave task out.')
        return self._objective

    def mixes(self, task: str | None) -> bool:
        return False

    def seen(self, image: object, task: str | None, number: int) -> Seen:
        with errors_named(lambda: f'image {number} of those given', 'Give another image.'):
            opened = open_image(image, self._gray_range)
            return task, self._view(opened), (opened.height, opened.width)

    def answers(self, batch: Sequence[Seen], options: Sequence[Options]) -> list[Answer]:
        images = torch.stack([view for _, view, _ in batch])
        return told(self._objective, averaged(self._graph, images, self._tta, self._objective), options)

    def describe(self) -> dict[str, Any]:
        return dict(
            name=self.name,
            version=self.version,
            metrics={},
            objective=self._objective.given['type'],
            labels=self._objective.names,
            size=list(self._about['preprocessing']['size']),
            backbone=str(self._about['backbone'].get('name', '')),
            tuners=[],
        )
