"""A user's own network as the backbone of a model folder, see vet/library.py.

The folder names the network. vet can build a network of timm again. Another network must be given.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from vet.backbones.libraries import classifier_of
from vet.backbones.own import OwnBackbone
from vet.backbones.timm import KWARGS
from vet.backbones.timm_files import load_file
from vet.core.backbone import Backbone
from vet.core.budget import rehearse_building
from vet.core.permits import ENTRIES, NOTHING, PREPROCESSING, lists, permits, text
from vet.errors import DataError, NetworkNeededError
from vet.offline import cache_alone_without_network
from vet.registry import BACKBONES

NAME = text(r'[\w.]{0,200}', 'the name of a class or of a network')
PARAMETERS = lists(text(r'[\w.]+', 'the name of a parameter'), most=ENTRIES)


@BACKBONES.register_module(name='network')
@permits(
    name=NAME, model=NAME, kwargs=NOTHING | KWARGS, whole=PARAMETERS, preprocessing=NOTHING | PREPROCESSING
)
def own_network(
    name: str,
    model: str = '',
    kwargs: Mapping[str, object] | None = None,
    whole: Sequence[str] = (),
    preprocessing: Mapping[str, object] | None = None,
    checkpoint: str | Path | None = None,
) -> Backbone:
    """A network that a user gave to `vet.tune`. Only model folders name it.

    name: the name of its class.
    model, kwargs: of timm.create_model, which makes the network again. '': vet cannot make the network.
    whole: the parameters that train whole. The folder has their values, so the sha256 is without them.
    preprocessing: of its images.
    checkpoint: a file of its weights, in place of timm's hub.
    """
    if not model:
        raise NetworkNeededError(
            f'the model was tuned on a network of the class {name}, which vet cannot build. Build the '
            'network as you did then, and give it: vet.load(folder, network), or vet.pipeline(folder, '
            'network=network).'
        )
    backbone = OwnBackbone(_of_timm(model, dict(kwargs or {}), whole, checkpoint), whole, preprocessing or {})
    made = dict(model=model, kwargs=dict(kwargs or {}), whole=list(whole))
    backbone.identity = backbone.origin = dict(backbone.identity, **made)
    return backbone


def _of_timm(
    model: str, kwargs: dict[str, Any], whole: Sequence[str], checkpoint: str | Path | None
) -> nn.Module:
    """timm's network. Its weights are from timm's hub, or from the file."""
    if not timm.is_model(model):
        raise DataError(
            f'the model was tuned on {model!r} of timm, which this timm does not have. Update timm.'
        )
    rehearse_building(lambda: timm.create_model(model, **kwargs))
    with torch.random.fork_rng(devices=[]), nullcontext() if checkpoint else cache_alone_without_network():
        torch.manual_seed(0)
        try:
            made = timm.create_model(model, pretrained=checkpoint is None, **kwargs)
        except OSError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(
                f'the weights of {model!r} are missing: they could not be downloaded ({reason}). Give a file '
                'of the weights (.safetensors or .pth).'
            ) from error
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f'timm cannot make {model!r} with {kwargs}: {error}') from error
        if checkpoint is not None:
            heads = tuple(classifier_of(made))
            bare = timm.create_model(model, pretrained=False, **{**kwargs, 'num_classes': 0})
            load_file(bare, model, Path(checkpoint).expanduser(), heads)
            _take_weights(made, bare, whole, f'{str(checkpoint)!r}', model)
    return made


def _take_weights(made: nn.Module, bare: nn.Module, whole: Sequence[str], file: str, model: str) -> None:
    """Puts the weights of the network without a classifier into the network with its classifier.

    whole: the parameters that the model folder holds. DataError if another weight is missing, or if the
    network has no place for a weight.
    """
    rest = made.load_state_dict(bare.state_dict(), strict=False)
    if left := [name for name in rest.missing_keys if name not in whole]:
        raise DataError(f'{file} does not hold {left[0]!r} of {model!r}.')
    if rest.unexpected_keys:
        raise DataError(
            f'{file} holds {rest.unexpected_keys[0]!r}, which {model!r} has only without a classifier. The '
            'weight would be lost. Build the network yourself, and give it: vet.load(folder, network).'
        )
