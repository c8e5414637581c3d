"""The objective of images with a mask: each pixel belongs to one of K classes."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Interval

from vet.core.objective import Answer, Objective
from vet.core.permits import number, permits
from vet.errors import UserError
from vet.registry import OBJECTIVES
from vet.targets import IGNORED, as_mask

SHOWN = 5  # classes of a mask in words


@OBJECTIVES.register_module()
@permits(overlap=number(0, 0.9))
class Segmentation(Objective):
    """A class for each pixel. The scores of a pixel are softmax(outputs), and sum to 1.

    A target is a mask (H, W) of class numbers 0 … K-1. Pixels of 255 are left out. The head has K outputs for
    each pixel. `pipeline` returns {'masks': [...], 'labels': [...], 'scores': [...]}, as ModelScope does: a
    mask (H, W) of 0 and 1, uint8, for each class that some pixel has. The largest mask is the first. A score
    is the mean of softmax(outputs) over the pixels of the mask.
    overlap: the least share of a window that is also in the next window. An image that is larger than the
        network's images is seen through windows.
    """

    targets = 'a mask'
    loss = dict(type='CrossEntropyLoss')
    metrics = ('mIoU', 'pixel_accuracy')
    dense = True
    view = ()
    watched = 'pixel_accuracy'
    about = 'a model that finds the class of each pixel of an image'
    hub_task = 'image-segmentation'

    def __init__(self, names: Sequence[str], overlap: Annotated[float, Interval(ge=0, le=0.9)] = 0.5):
        super().__init__(names)
        self.overlap = overlap
        if len(self.names) > IGNORED:
            raise UserError(f'there are {len(self.names)} classes; a mask has at most {IGNORED} classes.')

    def check(self, target: object, name: Callable[[], str]) -> torch.Tensor:
        return as_mask(target, self.names, name)

    def for_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return outputs, targets.long()

    def watch(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The share of an image's labelled pixels that are right."""
        is_labelled = targets != IGNORED
        is_right = (outputs.argmax(1) == targets) & is_labelled
        return is_right.flatten(1).sum(1) / is_labelled.flatten(1).sum(1).clamp(min=1)

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.softmax(1)

    def tally(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The pixels of each image by class: (B, K, 2), those that the model says, and the right ones among
        them; and (B, K), those of the mask. Pixels that are left out count nowhere.

        Outputs are resized to the mask.
        """
        is_labelled = targets != IGNORED
        said = self.fitted(outputs, targets.shape[-2:]).argmax(1)
        return torch.stack(
            [self._count(said, is_labelled), self._count(said, is_labelled & (said == targets))], -1
        ), self._count(targets, is_labelled)

    def _count(self, classes: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """(B, K): the pixels of each class, among those that count."""
        found = torch.where(counts, classes.long(), len(self.names)).flatten(1)
        counted = found.new_zeros(len(found), len(self.names) + 1)
        return counted.scatter_add_(1, found, torch.ones_like(found))[:, :-1]

    def fitted(self, outputs: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Outputs (B, K, h, w) -> (B, K, *size), bilinear."""
        if tuple(outputs.shape[-2:]) == tuple(size):
            return outputs
        return F.interpolate(outputs, size=tuple(size), mode='bilinear', align_corners=False)

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """(N, K): the pixels of each class that the model says."""
        return scores[..., 0]

    def answers(self, outputs: torch.Tensor, topk: int | None, usual: int) -> list[Answer]:
        found = []
        for shares_KHW in outputs.float().softmax(1):
            best, classes = shares_KHW.max(0)
            numbers, sizes = classes.unique(return_counts=True)
            order = sizes.argsort(descending=True, stable=True)[:topk]
            masks = [classes == label for label in numbers[order]]
            found.append(
                dict(
                    masks=[mask.to(torch.uint8).cpu().numpy() for mask in masks],
                    labels=[self.names[label] for label in numbers[order].tolist()],
                    scores=[float(best[mask].mean()) for mask in masks],
                )
            )
        return found

    def plain(self, answer: Answer) -> Answer:
        """Without the masks. shares: of the image's pixels, for each label."""
        return dict(labels=answer['labels'], scores=answer['scores'], shares=_shares(answer))

    def rows(self, answer: Answer) -> list[tuple[str, str]]:
        cells = zip(answer['labels'], answer['scores'], _shares(answer))
        return [(label, f'{score:.4f}  {100 * share:.1f} % of the pixels') for label, score, share in cells]

    @property
    def columns(self) -> list[str]:
        return ['label', 'score', 'share']

    def flat(self, answer: Answer) -> Answer:
        return {**super().flat(answer), 'share': '|'.join(f'{share:.6g}' for share in _shares(answer))}

    def refuse_threshold(self) -> None:
        raise UserError('the model gives masks, which have no single score. Leave the threshold out.')

    def words(self, target: Any) -> str:
        """The classes with the most pixels, and their shares. target: (K,) pixels of each class."""
        order = np.argsort(-target, kind='stable')[:SHOWN]
        total = max(1, int(target.sum()))
        return ', '.join(f'{self.names[k]} {100 * target[k] / total:.0f} %' for k in order if target[k])

    def wrongness(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The share of the labelled pixels that are wrong."""
        return 1 - scores[..., 1].sum(1) / np.maximum(1, targets.sum(1))

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        outputs, masks = map(torch.as_tensor, self.examples_for_loss())
        said, true = self.tally(outputs, masks)
        return said.numpy(), true.numpy()

    def examples_for_loss(self) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng(0)
        side = 8
        masks = draw.integers(0, len(self.names), (2, side, side), dtype=np.uint8)
        masks[:, 0, 0] = IGNORED
        return draw.standard_normal((2, len(self.names), side, side), dtype=np.float32), masks


def _shares(answer: Answer) -> list[float]:
    return [float(mask.mean()) for mask in answer['masks']]
