"""Real timm and torchvision networks made small: one builder per backbone family, with weights that
hide no gradient.
"""

import copy
import functools
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.efficientnet import EfficientNet, decode_arch_def
from timm.models.vgg import VGG
from torch import nn
from torchvision.models import VisionTransformer

from vet.backbones.roles import find_layout
from vet.core.backbone import Backbone, Preprocessing, weights_sha256
from vet.core.tuner import Tuner
from vet.registry import BACKBONES, TUNERS

torch.set_num_threads(1)  # the nets are too small to share out

VIT = dict(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2)
SWIN = dict(img_size=32, embed_dim=16, depths=(2, 1), num_heads=(2, 2), window_size=4, drop_path_rate=0.0)


def timm_net(name: str, size: int | None = None, **kwargs: object) -> Backbone:
    """A timm network of random weights, built by its plugin."""
    return BACKBONES.build(
        dict(
            type='timm',
            name=name,
            pretrained=False,
            kwargs=kwargs,
            preprocessing=dict(size=size) if size else {},
        )
    )


def _plain(name: str, network: nn.Module, **tokens: object) -> Backbone:
    return Backbone(
        network, find_layout(network, **tokens), Preprocessing(size=(32, 32)), dict(type='test', name=name)
    )


def _mobilenet() -> Backbone:
    blocks = decode_arch_def([['ds_r1_k3_s1_c8'], ['ir_r2_k3_s2_e2_c16'], ['ir_r1_k3_s1_e2_c16']])
    return _plain(
        'mobilenetv2 of 4 blocks', EfficientNet(blocks, num_classes=0, num_features=32, stem_size=8)
    )


def _vgg() -> Backbone:
    network = VGG([8, 'M', 16, 'M', 16], num_classes=0, mlp_ratio=1 / 128)
    network.pre_logits.fc1 = nn.Conv2d(16, 32, 7)
    network.pre_logits.fc2 = nn.Conv2d(32, 24, 1)
    return _plain('vgg of 3 layers', network)


def _torchvision_vit() -> Backbone:
    network = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64
    )
    network.heads.head = nn.Identity()
    return _plain('torchvision vit of 2 blocks', network, grid=(4, 4), num_prefix_tokens=1)


FAMILIES: dict[str, Callable[[], Backbone]] = {
    'vit': functools.partial(timm_net, 'vit_tiny_patch16_224', **VIT),
    'swin': functools.partial(timm_net, 'swin_tiny_patch4_window7_224', **SWIN),
    'convnext': functools.partial(timm_net, 'convnext_tiny', 32, depths=(1, 1, 1, 1), dims=(8, 16, 16, 24)),
    'resnet': functools.partial(timm_net, 'resnet18', 32, layers=(1, 1, 1, 1), channels=(8, 16, 24, 32)),
    'clip': functools.partial(timm_net, 'vit_base_patch16_clip_quickgelu_224', **VIT),
    'deit-distilled': functools.partial(timm_net, 'deit_tiny_distilled_patch16_224', **VIT),
    'mobilenet': _mobilenet,
    'vgg': _vgg,
    'torchvision-vit': _torchvision_vit,
}
DEFAULT_FAMILIES = ('vit', 'swin', 'convnext', 'resnet')


def randomised(backbone: Backbone, seed: int = 1) -> Backbone:
    """The same backbone with norms, biases, layer scales and running statistics drawn at random: zeros
    hide gradients.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in backbone.network.named_parameters():
            leaf = name.rpartition('.')[2]
            if leaf == 'bias' or leaf.endswith('_bias'):
                parameter.normal_(0, 0.3)
            elif parameter.dim() == 1:
                parameter.uniform_(0.7, 1.3)
            elif parameter.dim() == 2 or parameter.dim() == 4:
                nn.init.xavier_normal_(parameter)
        for name, buffer in backbone.network.named_buffers():
            if name.endswith('running_mean'):
                buffer.normal_(0, 0.3)
            elif name.endswith('running_var'):
                buffer.uniform_(0.5, 1.5)
    backbone.identity['sha256'] = weights_sha256(backbone.network.state_dict())
    return backbone


class Mould:
    """Makes copies of a module. The module is pickled once, and each copy has tensors of its own.

    A copy takes about a sixth of the time of `copy.deepcopy`.
    """

    def __init__(self, module: nn.Module):
        self._tensors: list[torch.Tensor] = []
        stream = io.BytesIO()
        pickler = pickle.Pickler(stream)
        pickler.persistent_id = self._keep  # type: ignore[method-assign]
        pickler.dump(module)
        self._rest = stream.getvalue()

    def copy(self) -> Any:
        tensors = copy.deepcopy(self._tensors)
        unpickler = pickle.Unpickler(io.BytesIO(self._rest))
        unpickler.persistent_load = tensors.__getitem__  # type: ignore[method-assign]
        return unpickler.load()

    def _keep(self, value: object) -> int | None:
        if not isinstance(value, torch.Tensor):
            return None
        self._tensors.append(value)
        return len(self._tensors) - 1


def tiny(family: str) -> Backbone:
    """A fresh randomised backbone of the family: the same weights at every call, in every process."""
    return _mould(family).copy()


@functools.cache
def _mould(family: str) -> Mould:
    return Mould(built_anew(family))


def built_anew(family: str) -> Backbone:
    """The backbone that `tiny` copies."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(FAMILIES[family]())


def images(count: int = 4, size: int = 32, seed: int = 2) -> torch.Tensor:
    """images (count, 3, size, size), the same at every call"""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def tuned(family: str, **config: object) -> tuple[Backbone, Tuner]:
    """A float64 backbone with the tuner, every number of it random."""
    torch.manual_seed(0)
    backbone, tuner = tiny(family).eval(), TUNERS.build(config)
    tuner.attach(backbone)
    backbone.double(), tuner.double().eval()
    with torch.no_grad():
        for _, parameter in tuner.trainable():
            parameter.normal_(0, 0.5)
    return backbone, tuner


def agrees(backbone: Backbone, tuner: Tuner, site: str, update: torch.Tensor) -> bool:
    """Whether the module computes with W + update (out, in, …), and the delta says so too."""
    module, delta = backbone.network.get_submodule(site), tuner.deltas[site.replace('.', '/')]
    W = module.weight + update.view_as(module.weight)
    if isinstance(module, nn.Linear):
        x = torch.randn(2, 5, module.in_features, dtype=torch.float64)
        expected = x @ W.T + module.bias
    else:
        x = torch.randn(2, module.in_channels, 9, 9, dtype=torch.float64)
        expected = F.conv2d(x, W, module.bias, module.stride, module.padding, module.dilation, module.groups)
    return torch.allclose(module(x), expected, rtol=0, atol=1e-8) and torch.allclose(
        delta(module.weight, None)[0], W, rtol=0, atol=1e-8
    )
