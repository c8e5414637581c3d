"""The facts that timm, torchvision and transformers state about a network: its classifier, and the images it
takes.

The file registers nothing. library.py asks it about a user's network.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from vet.backbones.kwargs import height_and_width

LAYERS = (nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class Library:
    """A library of networks, by the name of its package.

    classifier: of a network: the paths of the modules that give its logits. Empty: the network has none.
    size: of a network: (height, width) of its images. None: the network does not say.
    argument: the name of the argument that takes the images. '': the first argument.
    """

    package: str
    classifier: Callable[[Any], Iterable[str]]
    size: Callable[[Any], Any]
    argument: str = ''


def library_of(network: nn.Module) -> Library | None:
    """The library that wrote the network's class, or a class from which the user derived the class."""
    packages = [kind.__module__.partition('.')[0] for kind in type(network).__mro__]
    return next((LIBRARIES[package] for package in packages if package in LIBRARIES), None)


def classifier_of(network: nn.Module) -> list[str]:
    """The paths of the modules that the network's library calls its classifier, and that have parameters."""
    library = library_of(network)
    modules = dict(network.named_modules())
    found = library.classifier(network) if library else ()
    return [path for path in found if path in modules and any(True for _ in modules[path].parameters())]


def image_size_of(network: nn.Module) -> tuple[int, int] | None:
    """(height, width) of the images that the network takes. None: the network does not say."""
    library = library_of(network)
    size = library.size(network) if library else None
    return height_and_width(size) if size else None


# timm -------------------------------------------------------------------------------------------------------


def _timm_classifier(network: Any) -> Iterable[str]:
    named = (getattr(network, 'pretrained_cfg', None) or {}).get('classifier') or ()
    return (named,) if isinstance(named, str) else named


def _timm_size(network: Any) -> Any:
    patches = getattr(network, 'patch_embed', None)
    settings = getattr(network, 'pretrained_cfg', None) or {}
    return getattr(patches, 'img_size', None) or (settings.get('input_size') or (None,))[1:]


# torchvision ------------------------------------------------------------------------------------------------

# The classes of the layers in torchvision's own classifiers whose first layers are pretrained. The last
# trains.
HIDDEN = (
    'Linear ReLU Dropout Linear ReLU Dropout Linear',  # VGG
    'Dropout Linear ReLU Dropout Linear ReLU Linear',  # AlexNet
    'Linear Hardswish Dropout Linear',  # MobileNetV3
    'LayerNorm2d Flatten Linear',  # ConvNeXt
)


def _torchvision_classifier(network: Any) -> Iterable[str]:
    for name in ('fc', 'classifier', 'head', 'heads'):
        module = getattr(network, name, None)
        if isinstance(module, nn.Module):
            kinds = ' '.join(type(part).__name__ for part in module.children())
            return [f'{name}.{len(kinds.split()) - 1}' if kinds in HIDDEN else name]
    return []


def _torchvision_size(network: Any) -> Any:
    return getattr(network, 'image_size', None) or (299 if type(network).__name__ == 'Inception3' else 224)


# transformers -----------------------------------------------------------------------------------------------


def _transformers_classifier(network: Any) -> Iterable[str]:
    if 'ForImageClassification' not in type(network).__name__:
        return []
    ends = ('classifier', 'head')
    return [name for name, _ in network.named_children() if name.endswith(ends)]


def _transformers_size(network: Any) -> Any:
    config = network.config
    size = getattr(config, 'image_size', None) or getattr(
        getattr(config, 'vision_config', None), 'image_size', None
    )
    return size or 224


# OpenCLIP ---------------------------------------------------------------------------------------------------


def _open_clip_size(network: Any) -> Any:
    return getattr(getattr(network, 'visual', network), 'image_size', None)


LIBRARIES = {
    library.package: library
    for library in (
        Library('timm', _timm_classifier, _timm_size),
        Library('torchvision', _torchvision_classifier, _torchvision_size),
        Library('transformers', _transformers_classifier, _transformers_size, 'pixel_values'),
        Library('open_clip', lambda network: (), _open_clip_size),
    )
}
