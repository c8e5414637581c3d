"""The computation that a graph holds: of normalised images, or of plain pixels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.transforms import v2

from vet.config import Views
from vet.core.augmented import averaged
from vet.core.model import ImageClassifier
from vet.errors import UserError
from vet.transforms.resampling import FILTERS, Resampling
from vet.transforms.torchvision import normalisation, steps_of

WITHOUT = 'Leave --with-preprocessing out, and prepare the images yourself.'
AS_TENSOR = (v2.ToImage, v2.PILToTensor, v2.ToDtype, v2.Normalize)


@dataclass(frozen=True)
class Computation:
    """The computation of a graph.

    module: input -> output.
    example: an input.
    axes: the names of the axes of the input that may have any length.
    gives: the name of the output. The input is 'images'.
    """

    module: nn.Module
    example: torch.Tensor
    axes: Mapping[int, str]
    gives: str


def of_images(model: ImageClassifier) -> Computation:
    """Normalised images (batch, 3, H, W) -> logits (batch, K)."""
    example = torch.zeros(2, 3, *model.backbone.preprocessing.size)
    return Computation(model, example, {0: 'batch'}, 'logits')


def of_pixels(model: ImageClassifier, view: Callable, tta: Views) -> Computation:
    """uint8 RGB images (batch, height, width, 3) -> scores (batch, K), as `pipeline` computes them.

    view: the transform of the evaluation. tta: the views of test-time augmentation.
    UserError for a transform that a graph cannot hold, and for a model that answers for each pixel.
    """
    if model.objective.dense:
        raise UserError(
            f'a model of the objective {model.objective.given["type"]!r} sees an image in windows, which one '
            f'graph cannot hold. {WITHOUT}'
        )
    module = ScoresOfPixels(model, resampling_of(view), *normalisation(view), tta)
    axes = {0: 'batch', 1: 'height', 2: 'width'}
    return Computation(module, torch.zeros(2, 200, 300, 3, dtype=torch.uint8), axes, 'scores')


class ScoresOfPixels(nn.Module):
    """A classifier with its preprocessing: uint8 RGB images (B, H, W, 3) -> scores (B, K)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        model: ImageClassifier,
        resampling: Resampling,
        mean: Sequence[float],
        std: Sequence[float],
        tta: Views,
    ):
        super().__init__()
        self.model = model
        self.resampling = resampling
        self.tta = tta
        self.register_buffer('mean', torch.tensor(mean)[:, None, None])
        self.register_buffer('std', torch.tensor(std)[:, None, None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        normalised = (self.resampling(images).float() / 255 - self.mean) / self.std
        outputs = averaged(self.model, normalised, self.tta, self.model.objective)
        return self.model.objective.scores(outputs)


def resampling_of(view: Callable) -> Resampling:
    """The resize and crop of a transform of `build_transform`. UserError for a transform with other steps."""
    resize, *rest = steps_of(view)
    crop = next((step for step in rest if isinstance(step, v2.CenterCrop)), None)
    others = [step for step in rest if step is not crop and not isinstance(step, AS_TENSOR)]
    if not isinstance(resize, v2.Resize) or others or resize.size is None or resize.max_size is not None:
        names = ', '.join(type(step).__name__ for step in (resize, *rest))
        raise UserError(
            f'evaluation.transform is {names}; a graph can hold a Resize without max_size, a CenterCrop '
            f'and a Normalize. {WITHOUT}'
        )
    interpolation = v2.InterpolationMode(resize.interpolation).value
    if interpolation not in FILTERS:
        raise UserError(
            f'the interpolation is {interpolation!r}; a graph can hold {", ".join(FILTERS)}. {WITHOUT}'
        )
    sizes = list(resize.size)
    if len(sizes) == 1 and crop is None:
        raise UserError(
            f'evaluation.transform has a Resize of the short side to {sizes[0]} and no CenterCrop, so that '
            f'images have different sizes. {WITHOUT}'
        )
    resized = sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])
    kept = sizes if crop is None else list(crop.size)
    return Resampling(resized, (kept[0], kept[1]), interpolation)
