"""Backbone: a frozen pretrained network with its preprocessing, its sites and its identity.

Most of these networks have no classifier. backbones/ makes backbones, tuners edit them, ImageClassifier calls
them.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from vet.core.budget import rehearse
from vet.core.caches import caches_recorded, clear_caches
from vet.core.checkpoint_layout import plain_names, unwrapped
from vet.core.dry_run import Call, dry_run
from vet.core.example import Example
from vet.core.maps import Maps
from vet.core.modes import hold_statistics
from vet.core.preprocessing import Preprocessing
from vet.core.replaced import replaced, without_numbers
from vet.core.site_map import Layout, SiteMap
from vet.core.tensor_file import kind_of_numbers, not_finite, require_stored
from vet.errors import DataError, UserError
from vet.registry import Entry


@dataclass(frozen=True)
class FeaturesOnly:
    """A way of a network to compute only what its features need. For ImageClassifier.features_only.

    The file of the network's family gives the two functions.
    """

    within: Callable[[nn.Module], AbstractContextManager]  # of the network: the context of such a computation
    # of the network: the modules that then may see only a part of the tokens, the first tokens
    modules: Callable[[nn.Module], Iterable[nn.Module]]


Description = dict[str, Any]  # of a user's network (description.py): values of JSON
LARGE = 1e11  # operations for one image; a processor takes about a second


class FrozenNetwork(nn.Module):
    """A network whose parameters are frozen, with its sites. Tuners edit the network."""

    network: nn.Module
    sites: SiteMap
    preprocessing: Preprocessing
    delta_type: torch.dtype | None = None  # of the numbers in deltas; None: as the tuner makes them
    merges = 0  # how many models are merged into the weights, see core.merge

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_refuse_to_load)
        self.register_state_dict_pre_hook(_refuse_to_save)

    @property
    def is_merged(self) -> bool:
        """Whether reweights are written into the weights, see ImageClassifier.merge."""
        return self.merges > 0

    def example(self) -> Example:
        """An input of one image, on the device of the network."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """As in torch, but a norm with running statistics stays in eval unless its scale trains.

        Otherwise the statistics would drift. Modules forget what they keep of earlier parameters.
        """
        hold_statistics(self.network)
        super().train(mode)
        clear_caches(self.network.modules())
        return self


TRAINED = 'trained: the tuners would get no gradient'  # an action of merged_error


def merged_error(action: str, else_do: str = '') -> UserError:
    """The error about what a merged model cannot do. else_do: sentences about another way."""
    return UserError(f'the model is merged, so that it cannot be {action}. Call unmerge() first.{else_do}')


def _refuse_to_load(frozen: FrozenNetwork, *rest: object) -> None:
    if frozen.is_merged:
        raise merged_error('loaded from a state_dict')


def _refuse_to_save(frozen: FrozenNetwork, *rest: object) -> None:
    if frozen.is_merged:
        raise merged_error('saved as a state_dict')


class Backbone(FrozenNetwork):
    """`network` maps normalised images (B, 3, H, W) to pooled features (B, C), or to the logits of a kept
    classifier. All its parameters are frozen.

    identity: what a model folder needs to make the backbone again: type, name, tag, sha256 of the weights,
        and hints.
    layout: which modules play which role.
    published: the preprocessing of the training of the weights.
    remarks: other differences between the training and the use of the weights.
    origin: the identity that the library's plugin gave, if another plugin gave its own identity.
    read: the weights as they were read, if the network's weights were computed from them (positions of
        another grid). Then the sha256 is that of `read`, because computed weights differ between processors.
    is_resampled: whether `read` was given.
    """

    features_only: FeaturesOnly | None = None
    maps: Maps | None = None  # for heads that answer for each pixel
    described: Description | None = None  # a user's own network, see hub/network_folder.py
    pooling = 'choose a pooling with model.backbone.kwargs, such as global_pool="avg"'

    def __init__(
        self,
        network: nn.Module,
        layout: Layout,
        preprocessing: Preprocessing,
        identity: Entry,
        published: Preprocessing | None = None,
        remarks: Iterable[str] = (),
        read: Mapping[str, torch.Tensor] | None = None,
    ):
        super().__init__()
        self.network = network.requires_grad_(False)
        self.preprocessing = preprocessing
        self.published = published or preprocessing
        self.remarks = tuple(remarks)
        self.is_resampled = read is not None
        sha256 = weights_sha256(network.state_dict()) if read is None else resampled_sha256(read, network)
        self.identity = self.origin = dict(identity, sha256=sha256)
        image = torch.zeros(1, 3, *preprocessing.size, device=next(network.parameters()).device)
        try:
            is_large = rehearse(network, image) > LARGE
            with caches_recorded(network):
                calls = _without_numbers(network, image) if is_large else None
                calls = calls or dry_run(network, image)
        except UserError:
            raise
        except (RuntimeError, AssertionError, ValueError, AttributeError, TypeError, IndexError) as error:
            said = str(error).rstrip('. ') or type(error).__name__
            built = f'; it was built for {self.published.size}' * (preprocessing.size != self.published.size)
            raise UserError(
                f'{identity.get("name")} does not take images of {preprocessing.size} (height, '
                f'width){built}: {said}. Set model.backbone.preprocessing.size to a size that the network '
                'takes.'
            ) from error
        features = calls[''].out_shape
        if len(features) != 1:
            raise UserError(
                f'{identity.get("name")} gives {tuple(features)} per image, not pooled features (C,); '
                f'{self.pooling}.'
            )
        self.num_features = features[0]
        self.sites = SiteMap(
            network, layout, calls, family=f'{identity.get("name")} ({type(network).__name__})'
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) -> features (B, C)"""
        return self.network(images)

    def example(self) -> Example:
        """A black image, (1, 3, H, W), on the device of the network."""
        device = next(self.parameters()).device
        return Example((torch.zeros(1, 3, *self.preprocessing.size, device=device),))

    def warnings(self) -> list[str]:
        """The differences between the training and the use of the weights, in words."""
        name = self.identity.get('name', self.identity['type'])
        here = vars(self.preprocessing)
        there = vars(self.published)
        return [
            *self.remarks,
            *(
                f'{name} takes images of {field} {here[field]}, but its weights were trained with '
                f'{there[field]}.'
                for field in ('mean', 'std', 'interpolation')
                if here[field] != there[field]
            ),
        ]


def _without_numbers(network: nn.Module, image: torch.Tensor) -> dict[str, Call] | None:
    """The dry run on the meta device, which takes no time. None if the network needs numbers."""
    try:
        with replaced(network.modules(), without_numbers):
            return dry_run(network, image.to('meta'))
    except Exception:
        return None


def weights_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """The sha256 of named tensors (name, dtype, shape, bytes, in the order of names), from any file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def resampled_sha256(read: Mapping[str, torch.Tensor], network: nn.Module) -> str:
    """The sha256 of weights as they were read, and of the names and shapes of the network that they were
    resampled for.
    """
    shapes = ''.join(
        f'{name} {tuple(tensor.shape)}\n' for name, tensor in sorted(network.state_dict().items())
    )
    return hashlib.sha256(f'{weights_sha256(read)}\n{shapes}'.encode()).hexdigest()


class WatchedResampling(TorchFunctionMode):
    """Within this context, `seen` becomes true if a tensor is resampled, as positions are for another
    grid.
    """

    seen = False

    def __torch_function__(
        self, function: Callable, types: Iterable[type], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        self.seen = self.seen or function in (F.interpolate, F.grid_sample, torch.linalg.pinv)
        return function(*args, **(kwargs or {}))


def read_weights(path: str | Path, use_ema: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors or torch file. No code is run. DataError if the file cannot be read in
    this way.

    use_ema: if a file holds weights and their average over the training: True takes the average, as timm
        does, with a warning. False takes the weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(
            f'the weight file {str(path)!r} does not exist; give an existing file in '
            'model.backbone.checkpoint.'
        )
    try:
        require_stored(path)
        state = (
            load_file(path)
            if path.suffix == '.safetensors'
            else torch.load(path, map_location='cpu', weights_only=True)
        )
    except DataError:
        raise
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        if 'TorchScript' in str(error):
            raise DataError(
                f"the weight file {str(path)!r} is a TorchScript archive, as OpenAI's CLIP files are: it "
                'holds code, and is refused. If you trust the file, save only its tensors, and give these: '
                f'torch.save(torch.jit.load({path.name!r}, map_location="cpu").state_dict(), '
                f'{path.with_suffix(".pth").name!r}).'
            ) from error
        raise DataError(f'the weight file {str(path)!r} cannot be read: {error}') from error
    # pickle.UnpicklingError and similar errors, whose module depends on the torch version
    except Exception as error:
        raise DataError(
            f'the weight file {str(path)!r} holds more than tensors and is refused: {error}'
        ) from error
    state = unwrapped(state, str(path), use_ema)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        parts = state if isinstance(state, dict) else {}
        kinds = [f'{key} ({type(value).__name__})' for key, value in parts.items()]
        has = f' The dict has {", ".join(kinds[:8])}.' if kinds else ''
        raise DataError(
            f"the weight file {str(path)!r} is not a dict of tensors.{has} Save the dict of one network's "
            'tensors alone, and give that file.'
        )
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise DataError(
                f'the weight file {str(path)!r} holds {name!r} as a sparse or quantized tensor, or without '
                'its numbers. Save the weights as plain tensors of floats.'
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise DataError(
                f'the weight file {str(path)!r} holds {name!r} of {tuple(tensor.shape)}, which is larger '
                'than what the file stores of the tensor. Save the tensor again as a contiguous tensor.'
            )
    return plain_names(state)


def load_weights(
    network: nn.Module, state: Mapping[str, torch.Tensor], source: str, classifier: tuple[str, ...]
) -> None:
    """Loads `state` into `network`.

    `classifier` has dotted prefixes. Weights with these prefixes may be left over. All other weights must fit
    exactly.
    """
    expected = network.state_dict()
    may_be_left = tuple(f'{path}.' for path in classifier)
    left_over = [name for name in state if name not in expected and not name.startswith(may_be_left)]
    missing = [name for name in expected if name not in state and not name.endswith('num_batches_tracked')]
    misfit = [
        f'{name} is {tuple(state[name].shape)}, needed {tuple(expected[name].shape)}'
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    other_kind = [
        f'{name} is {state[name].dtype}, needed {expected[name].dtype}'
        for name in expected
        if name in state and kind_of_numbers(state[name]) != kind_of_numbers(expected[name])
    ]
    if left_over or missing or misfit or other_kind:

        def some(names: list[str]) -> str:
            return f'{", ".join(names[:3])}{" …" if len(names) > 3 else ""} ({len(names)})'

        faults = [
            f'{what}: {some(names)}'
            for what, names in (
                ('missing', missing),
                ('not of this network', left_over),
                ('of another shape', misfit),
                ('of another kind of number', other_kind),
            )
            if names
        ]
        raise DataError(
            f'{source} holds the weights of another architecture than {type(network).__name__} here. '
            f'{"; ".join(faults)}. {_advice(expected, state)}'
        )
    network.load_state_dict({name: state.get(name, expected[name]) for name in expected})
    refuse_not_finite(network, source)


def _advice(expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> str:
    """What to do with weights that do not fit: other weights, or other names if a prefix hides them."""
    wanted = {name: tensor for name, tensor in expected.items() if not name.endswith('num_batches_tracked')}
    last = next(reversed(wanted), '')
    hidden = [name.removesuffix(last) for name in state if last and name.endswith(f'.{last}')]
    fitting = [prefix for prefix in hidden if _fits_below(prefix, wanted, state)]
    if not fitting:
        return 'Give the checkpoint of this backbone, or the backbone of this checkpoint.'
    prefix = fitting[0]
    others = f' (also below {", ".join(map(repr, fitting[1:3]))})' if fitting[1:] else ''
    return (
        f'The weights of this network stand below the prefix {prefix!r}{others}. Save them without the '
        f'prefix, and give that file: {{name.removeprefix({prefix!r}): tensor for name, tensor in '
        f'weights.items() if name.startswith({prefix!r})}}.'
    )


def _fits_below(prefix: str, wanted: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> bool:
    """Whether `state` has all wanted tensors, with `prefix` before their names."""
    for name, tensor in wanted.items():
        below = state.get(prefix + name)
        if below is None or below.shape != tensor.shape:
            return False
    return True


def refuse_not_finite(network: nn.Module, source: str) -> None:
    """DataError if a parameter holds NaN or an infinite number. source: where the parameters come from."""
    if broken := not_finite(dict(network.named_parameters())):
        raise DataError(
            f'{source} holds weights that are not finite, in {broken[0]} ({len(broken)} tensors). The file '
            'is damaged, or the training of its weights failed. Give another file.'
        )
