"""ImageClassifier: a backbone, its tuners, a head and an objective. Says which numbers are trained,
saved and merged.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from vet.core.backbone import Backbone, merged_error
from vet.core.caches import clear_caches
from vet.core.containers import ModuleListOf
from vet.core.delta import declared
from vet.core.edits import FlowEdit, Thaw
from vet.core.maps import MapHead, refuse_edits_beside_maps, require_maps
from vet.core.merge import Merged, merge_tuners, refuse_backward, refuse_training, unmerge_tuners
from vet.core.objective import Objective, build_objective
from vet.core.reweight import Reweight
from vet.core.tensor_file import misfits, not_finite
from vet.core.tuner import Tuner
from vet.core.windows import over_windows
from vet.errors import DataError, UserError


class ImageClassifier(nn.Module):
    """Normalised images (B, 3, H, W) -> logits (B, K). Attaches `tuners` to `backbone`, in order.

    With a head of maps, logits are (B, K, H, W).

    classes: the K class names, or the names of the numbers that the model estimates.
    objective: what the outputs mean. None: one class for each image.
    Only the parameters of the tuners and of the head train.
    """

    def __init__(
        self,
        backbone: Backbone,
        tuners: Iterable[Tuner],
        head: nn.Module,
        classes: Sequence[str] = (),
        objective: Objective | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.classes = list(classes)
        self.objective: Objective = objective or build_objective(None, self.classes)
        self.tuners: ModuleListOf[Tuner] = ModuleListOf(tuners)
        for tuner in self.tuners:
            tuner.attach(backbone)
        if isinstance(head, MapHead):
            refuse_edits_beside_maps(backbone, list(self.tuners), head.stages)
        self._merged: list[Merged] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) -> logits (B, K), float32. UserError while the model is merged and trains."""
        refuse_training(self.tuners, self.training)
        if isinstance(self.head, MapHead):
            logits = self.objective.finish(self._masks(self.head, images))
        else:
            logits = self.outputs_of(self.backbone(images))
        refuse_backward(self, self.tuners, images, logits)
        return logits

    def _masks(self, head: MapHead, images: torch.Tensor) -> torch.Tensor:
        """The head's logits (B, K, H, W), from the maps of the stages that it reads."""
        maps = require_maps(self.backbone, type(head).__name__)
        return head(maps.compute(self.backbone.network, images, head.stages), images.shape[-2:])

    def of_any_size(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) of any size -> logits (B, K, H, W) of a model of masks, through windows."""
        return over_windows(self, images, self.backbone.preprocessing.size, self.objective.overlap)

    def outputs_of(self, features: torch.Tensor) -> torch.Tensor:
        """The backbone's features (B, C) -> the model's outputs (B, K): logits, or numbers in the
        user's units.
        """
        return self.objective.finish(self.head(features))

    @property
    def tasks(self) -> dict[str | None, 'ImageClassifier']:
        """{None: this classifier}. A classifier of one task has no task name. See MultiTaskClassifier."""
        return {None: self}

    def for_task(self, task: str | None) -> 'ImageClassifier':
        """This classifier, for None. UserError for a task's name."""
        if task is not None:
            raise UserError(f'task is {task!r}, but the model has one task without a name; leave task out.')
        return self

    @property
    def edits(self) -> list[Thaw | Reweight | FlowEdit]:
        """The edits of all tuners, in the order in which they were made."""
        return [edit for tuner in self.tuners for edit in tuner._edits]

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by their names in files: 'tuners.0.deltas.….A', 'head.weight'."""
        tuned = {
            f'tuners.{i}.{name}': p for i, tuner in enumerate(self.tuners) for name, p in tuner.trainable()
        }
        return tuned | {f'head.{name}': p for name, p in self.head.named_parameters() if p.requires_grad}

    def trained_state(self) -> dict[str, torch.Tensor]:
        """All numbers that training made, with buffers and thawed values, by their names in files."""
        tuned = {
            f'tuners.{i}.{name}': value
            for i, tuner in enumerate(self.tuners)
            for name, value in tuner.state().items()
        }
        return tuned | {f'head.{name}': value for name, value in self.head.state_dict().items()}

    def training_state(self) -> dict[str, torch.Tensor]:
        """The state, beside `trained_state`, that only further training needs.

        Checkpoints hold it, model folders do not.
        """
        return {
            f'{i}.{name}': value
            for i, tuner in enumerate(self.tuners)
            for name, value in tuner.training_state().items()
        }

    def load_trained_state(self, state: Mapping[str, torch.Tensor], source: str = 'the file') -> None:
        """Copies the tensors of `trained_state` into this model. If names or shapes differ, nothing is
        loaded.

        UserError while the model is merged.
        """
        if self.is_merged:
            raise merged_error('loaded: the merged weights would not change')
        load_into(self.trained_state(), state, source)
        clear_caches(self.modules())

    def count(self) -> dict[str, int]:
        """Numbers of parameters: 'tuners', 'head', 'trainable' (their sum), 'backbone' and 'total'."""
        head = sum(p.numel() for p in self.head.parameters() if p.requires_grad)
        trainable = sum(p.numel() for p in self.trainable().values())
        backbone = sum(p.numel() for p in self.backbone.parameters())
        deltas = sum(p.numel() for p in self.tuners.parameters())
        return dict(
            tuners=trainable - head,
            head=head,
            trainable=trainable,
            backbone=backbone,
            total=backbone + deltas + sum(p.numel() for p in self.head.parameters()),
        )

    def features_only(self) -> AbstractContextManager:
        """Within this context, the backbone computes only what its features need.

        If the backbone cannot do so, or if an edit needs the rest, the backbone computes all. Results are
        equal except for rounding. For training only: outside of this context, scores are those of the whole
        network, bit for bit.
        """
        way = self.backbone.features_only
        network = self.backbone.network
        if way is None or isinstance(self.head, MapHead):
            return nullcontext()
        seen = {
            edit.module
            for edit in self.edits
            if isinstance(edit, FlowEdit) and not declared(edit.delta).by_token
        }
        misses = seen and seen.intersection(way.modules(network))
        return nullcontext() if misses else way.within(network)

    @property
    def is_merged(self) -> bool:
        """Whether `merge` of this model was called, and `unmerge` was not."""
        return any(tuner.is_merged for tuner in self.tuners)

    def merge(self) -> nn.Module:
        """Writes all reweights into plain weights, which cost nothing at inference. Returns the network.

        UserError in two cases: if a tuner edits the flow through the network, because no weight can hold such
        an edit; and if another model on this backbone edits the same weights first. The new weights are
        computed in float32. Merging a merged model changes nothing. Until `unmerge`, a UserError refuses what
        would go wrong in silence: training, loading weights, attaching or detaching tuners. vet does not see
        writes through `.data` into the numbers of a tuner. Such writes change no output.
        Call `unmerge` before an average of weights, such as torch's AveragedModel, reads the parameters.
        Otherwise the average, which is not merged, counts each update twice. vet cannot see that.
        """
        self._merged += merge_tuners(self.backbone, self.tuners)
        return self.backbone.network

    def unmerge(self) -> None:
        """Undoes `merge`, bit for bit. vet has kept the original weights.

        UserError if another model was merged into the same weights later.
        """
        unmerge_tuners(self.backbone, self.tuners, self._merged)


def load_into(wanted: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], source: str) -> None:
    """Copies `state` into the tensors of `wanted`.

    DataError if names, shapes or kinds of numbers differ, or if a number is not finite. Then nothing is
    copied.
    """
    require_fit(wanted, state, source)
    wrong = not_finite(state)
    if wrong:
        raise DataError(
            f'{source} holds numbers that are not finite in {len(wrong)} tensors, such as {wrong[0]!r}. The '
            'file is damaged, or its training diverged: copy the file again, or train again.'
        )
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(state[name])


def require_fit(wanted: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], source: str) -> None:
    """DataError if `state` cannot be copied into `wanted`.

    The tensors of `state` may be without data, on the meta device.
    """
    wrong = misfits(wanted, state)
    if wrong:
        raise DataError(
            f'{source} does not fit this model at {len(wrong)} tensors, such as {wrong[0]!r} '
            f'(given {_shape(state, wanted, wrong[0])}, needed {_shape(wanted, state, wrong[0])}).'
        )


def _shape(state: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], name: str) -> object:
    """The shape of a tensor. If the other tensor has an equal shape: also the type."""
    if name not in state:
        return 'nothing'
    shape = tuple(state[name].shape)
    return f'{shape} of {state[name].dtype}' if name in other and other[name].shape == shape else shape
