"""The facts that timm, torchvision and transformers state about a network: its classifier, and the images it
takes.

The file registers nothing. library.py asks this file about a user's network.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vet.backbones.kwargs import height_and_width
from vet.backbones.roles import find_layout
from vet.core.description import settings_of, shapes_of
from vet.core.flow import WEIGHTED
from vet.core.site_map import Layout
from vet.registry import package_of

Size = int | Sequence[int] | None  # of the images of a network: the side, or (height, width)
Network = Any  # a network of a library, whose attributes no type declares
Recipe = tuple[str, dict[str, Any]]  # the name and the arguments by which a library makes a network
POSITIONS = re.compile(r'pos_embed|rel_pos|relative_position')  # in the names of tensors


@dataclass(frozen=True)
class Library:
    """A library of networks, by the name of its package.

    classifier: of a network: the paths of the modules that give its logits. Empty: the network has none.
    size: of a network: (height, width) of its images. None: the network does not say.
    argument: the name of the argument that takes the images. '': the first argument.
    recipe: of a network: the name of the network and the arguments that build the network again, as
        backbones/network.py does. None: not known.
    preprocessing: of a network: settings of its images, see core/preprocessing.py.
    """

    package: str
    classifier: Callable[[nn.Module], Iterable[str]]
    size: Callable[[nn.Module], Size]
    argument: str = ''
    recipe: Callable[[nn.Module], Recipe | None] = lambda network: None
    preprocessing: Callable[[nn.Module], dict[str, object]] = lambda network: {}


def library_of(network: nn.Module) -> Library | None:
    """The library that wrote the network's class, or a class from which the user derived the class."""
    packages = map(package_of, type(network).__mro__)
    return next((LIBRARIES[package] for package in packages if package in LIBRARIES), None)


def classifier_of(network: nn.Module) -> list[str]:
    """The paths of the modules that the network's library calls its classifier, and that have parameters."""
    library = library_of(network)
    modules = dict(network.named_modules())
    found = library.classifier(network) if library else ()
    return [path for path in found if path in modules and list(modules[path].parameters())]


def patches_of(network: Network) -> Any:
    """The module that cuts an image into patches, or None. timm's TNT calls the module `pixel_embed`."""
    return getattr(network, 'patch_embed', getattr(network, 'pixel_embed', None))


def layout_of(network: nn.Module) -> Layout:
    """The layout of a user's network: its blocks, patches, prefix tokens and classifier."""
    grid = getattr(patches_of(network), 'grid_size', None)
    return find_layout(
        network, None, grid, getattr(network, 'num_prefix_tokens', 0), tuple(classifier_of(network))
    )


def image_size_of(network: nn.Module) -> tuple[int, int] | None:
    """(height, width) of the images that the network takes. None: the network does not say."""
    library = library_of(network)
    size = library.size(network) if library else None
    return height_and_width(size) if size else None


def input_of(network: nn.Module, is_guessed: bool) -> str:
    """Which input the network takes, for an error: by its library, or by its first layer.

    is_guessed: the input of the error is the image that the library states.
    """
    library = library_of(network)
    size = None if is_guessed else image_size_of(network)
    argument = library.argument if library else ''
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, WEIGHTED)]
    name, first = layers[0] if layers else ('', network)
    channels = getattr(first, 'in_channels', 3)
    takes = 'vet guessed this input. ' if is_guessed else ''
    if size:
        takes += f'The network takes images (B, {channels}, {size[0]}, {size[1]}). '
    elif hasattr(first, 'in_channels'):
        takes += f'The first layer {name!r} ({type(first).__name__}) takes {channels} channels. '
    elif hasattr(first, 'in_features'):
        takes += f'The first layer {name!r} takes {first.in_features} numbers for each row. '
    height, width = size or ('height', 'width')
    image = f'torch.zeros(1, {channels}, {height}, {width})'
    several = (
        'example=(…, …) for several arguments, example=((…, …),) for one argument that is a tuple, or '
        'example=dict(…) for keyword arguments'
    )
    further = ', with further keyword arguments if the network needs them'
    example = f'dict({argument}={image}){further}' if argument else f'{image}, {several}'
    return f'{takes}Give an input that the network takes: example={example}.'


def resampled_of(network: Network) -> list[str]:
    """The names of positions that were resampled from another image size. Their bytes differ between
    processors.
    """
    settings = getattr(network, 'pretrained_cfg', None) or {}
    size = image_size_of(network)
    pretrained = tuple(settings.get('input_size') or ())[1:]
    if not pretrained or size == pretrained:
        return []
    return [name for name in network.state_dict() if POSITIONS.search(name)]


# timm -------------------------------------------------------------------------------------------------------


def _timm_classifier(network: nn.Module) -> Iterable[str]:
    named = (getattr(network, 'pretrained_cfg', None) or {}).get('classifier') or ()
    return (named,) if isinstance(named, str) else named


def _timm_size(network: nn.Module) -> Size:
    settings = getattr(network, 'pretrained_cfg', None) or {}
    return getattr(patches_of(network), 'img_size', None) or (settings.get('input_size') or (None,))[1:]


def _timm_recipe(network: Network) -> Recipe | None:
    """The name and the arguments of timm.create_model that make this network, found by trial."""
    settings = getattr(network, 'pretrained_cfg', None) or {}
    name = '.'.join(filter(None, (settings.get('architecture'), settings.get('tag'))))
    import timm  # here, because the import takes seconds

    if not timm.is_model(name):
        return None
    kwargs: dict[str, Any] = dict(num_classes=network.num_classes)
    further: dict[str, Any] = {}
    size = image_size_of(network)
    if size and patches_of(network) is not None and size != tuple(settings['input_size'])[1:]:
        further['img_size'] = size[0] if size[0] == size[1] else list(size)
    if isinstance(getattr(network, 'global_pool', None), str):
        further['global_pool'] = network.global_pool
    for chosen in (kwargs, kwargs | further):
        try:
            with torch.device('meta'):
                other = timm.create_model(name, pretrained=False, **chosen)
        except Exception:  # a constructor that needs numbers, or that does not take an argument
            continue
        if (shapes_of(other), settings_of(other)) == (shapes_of(network), settings_of(network)):
            return name, chosen
    return None


def _timm_preprocessing(network: nn.Module) -> dict[str, object]:
    import timm  # here, because the import takes seconds

    settings = timm.data.resolve_model_data_config(network)
    return {name: settings[name] for name in ('mean', 'std', 'crop_pct', 'interpolation')}


# torchvision ------------------------------------------------------------------------------------------------

# The classes of the layers in torchvision's own classifiers whose first layers are pretrained. The last
# trains.
HIDDEN = (
    'Linear ReLU Dropout Linear ReLU Dropout Linear',  # VGG
    'Dropout Linear ReLU Dropout Linear ReLU Linear',  # AlexNet
    'Linear Hardswish Dropout Linear',  # MobileNetV3
    'LayerNorm2d Flatten Linear',  # ConvNeXt
)


# Of segmentation networks, and of R-CNNs, which have a predictor for each kind of target
FURTHER = ('aux_classifier', *(f'roi_heads.{kind}_predictor' for kind in ('box', 'mask', 'keypoint')))


def _torchvision_classifier(network: nn.Module) -> Iterable[str]:
    modules = dict(network.named_modules())
    found = [name for name in FURTHER if name in modules]
    if name := next((name for name in ('fc', 'classifier', 'head', 'heads') if name in modules), ''):
        kinds = ' '.join(type(child).__name__ for child in modules[name].children())
        found.insert(0, f'{name}.{len(kinds.split()) - 1}' if kinds in HIDDEN else name)
    return found


def _torchvision_size(network: nn.Module) -> Size:
    return getattr(network, 'image_size', None) or (299 if type(network).__name__ == 'Inception3' else 224)


# transformers -----------------------------------------------------------------------------------------------

PARTS = ('vision', 'backbone')  # of a configuration, which has a configuration for each


def _transformers_classifier(network: Network) -> Iterable[str]:
    """The modules that transformers calls a classifier, such as 'decode_head.classifier'.

    For classification, this is the head.
    """
    if wrapped := getattr(network, 'timm_model', None):
        return [f'timm_model.{name}' for name in _timm_classifier(wrapped)]
    found = [name for name, _ in network.named_modules() if name.endswith('classifier')]
    if 'ForImageClassification' in type(network).__name__:
        found += [name for name, _ in network.named_children() if name.endswith('head')]
    return found


def _transformers_size(network: Network) -> Size:
    if wrapped := getattr(network, 'timm_model', None):
        return _timm_size(wrapped)
    configs = [network.config, *(getattr(network.config, f'{name}_config', None) for name in PARTS)]
    return next((size for config in configs if (size := getattr(config, 'image_size', None))), 224)


# OpenCLIP ---------------------------------------------------------------------------------------------------


def _open_clip_size(network: nn.Module) -> Size:
    return getattr(getattr(network, 'visual', network), 'image_size', None)


LIBRARIES = {
    library.package: library
    for library in (
        Library('timm', _timm_classifier, _timm_size, '', _timm_recipe, _timm_preprocessing),
        Library('torchvision', _torchvision_classifier, _torchvision_size),
        Library('transformers', _transformers_classifier, _transformers_size, 'pixel_values'),
        Library('open_clip', lambda network: (), _open_clip_size),
    )
}
