"""Adapters of `peft` on small timm networks, whose weights are the same at every call."""

import copy
import functools

import peft
import timm
import torch

from tests.nets import VIT, images, randomised, timm_net

NETS = {
    'vit': ('vit_tiny_patch16_224', VIT, {}),
    'resnet': ('resnet18', dict(layers=(1, 1, 1, 1), channels=(8, 16, 24, 32)), dict(size=32)),
    'convnext': ('convnext_tiny', dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 24)), dict(size=32)),
}
HEAD = dict(vit='head', resnet='fc', convnext='head.fc')


@functools.cache
def _backbone(family):
    name, kwargs, preprocessing = NETS[family]
    return randomised(timm_net(name, preprocessing.get('size'), **kwargs)).eval()


@functools.cache
def _network(family, num_classes):
    name, kwargs, _ = NETS[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = timm.create_model(name, num_classes=num_classes, **kwargs).eval()
    missing, _ = net.load_state_dict(_backbone(family).network.state_dict(), strict=False)
    assert {key.rpartition('.')[0] for key in missing} <= {HEAD[family]}
    return net


def backbone(family):
    return copy.deepcopy(_backbone(family))


def network(family, num_classes=5):
    """timm's network with a classifier, of the same weights at every call."""
    return copy.deepcopy(_network(family, num_classes))


def adapter(family, config, folder, num_classes=5):
    """What `peft` writes of an adapter whose every number is random, and the outputs that it then gives."""
    torch.manual_seed(3)
    model = peft.get_peft_model(network(family, num_classes), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
        out = model(images(3))
    model.save_pretrained(folder)
    return out


def difference(ours, theirs):
    assert ours.shape == theirs.shape
    # logits of 70 have float32 steps of 8e-6
    return (ours - theirs).abs().max().item() / max(1.0, theirs.abs().max().item())
