"""A dry run without numbers finds what a dry run of an image finds, and takes no time on a large network."""

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from tests.nets import FAMILIES, images, timm_net, tiny
from vet.core.backbone import _without_numbers
from vet.core.budget import Budget
from vet.core.dry_run import dry_run


@pytest.mark.parametrize('family', FAMILIES)
def test_a_dry_run_without_numbers_finds_the_same(family):
    network = tiny(family).network
    before = {name: id(value) for name, value in network.state_dict(keep_vars=True).items()}
    found = _without_numbers(network, torch.zeros(1, 3, 32, 32))
    assert found == dry_run(network, torch.zeros(1, 3, 32, 32))
    assert {name: id(value) for name, value in network.state_dict(keep_vars=True).items()} == before


def test_a_stranger_s_large_network_is_not_computed():
    """The image costs 2e11 operations. The network works as ever afterwards."""
    devices = set()
    seen = register_module_forward_pre_hook(
        lambda module, args: devices.update(arg.device.type for arg in args if isinstance(arg, torch.Tensor))
    )
    sizes = dict(patch_size=8, embed_dim=32, depth=2, num_heads=2)
    try:
        with Budget():
            backbone = timm_net('vit_tiny_patch16_224', img_size=2048, **sizes)
    finally:
        seen.remove()
    assert devices == {'meta'}
    small = timm_net('vit_tiny_patch16_224', img_size=32, **sizes)
    for role in ('block', 'attn.qkv', 'mlp', 'norm', 'weight'):
        assert [site.name for site in backbone.sites.find(role)] == [
            site.name for site in small.sites.find(role)
        ]
    assert small.eval()(images(1)).isfinite().all() and not any(p.is_meta for p in backbone.parameters())
