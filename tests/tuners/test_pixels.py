"""The branch from the pixels, written out in float64; what side networks save for the backward pass,
beside LoRA.
"""

import functools

import pytest
import torch
from torchvision.models import vgg19

from tests.nets import images, timm_net, tiny, tuned
from vet.core.dry_run import dry_run
from vet.core.site_map import Layout, SiteMap
from vet.core.tuner import Tuner
from vet.errors import UserError
from vet.registry import TUNERS


def branch(**config: object) -> Tuner:
    return TUNERS.build(dict(type='PixelBranch', **config))


@pytest.mark.parametrize('family', ['vit', 'resnet', 'vgg'])
def test_output_is_the_frozen_networks_and_a_low_rank_map_of_the_pixels(family):
    backbone, tuner = tuned(family, type='PixelBranch', rank=3, scale=0.7)
    delta, x = tuner.deltas['backbone'], images(2).double()
    A, B = delta.A.weight.detach(), delta.B.weight.detach()
    assert A.shape == (3, 3 * 32 * 32) and B.shape == (backbone.num_features, 3)
    expected = tiny(family).eval().double()(x)
    for b in range(2):
        for r in range(3):
            h = sum((A[r].view(3, 32, 32)[c] * x[b, c]).sum() for c in range(3))
            expected[b] += 0.7 * h * B[:, r]
    assert torch.allclose(backbone(x), expected, rtol=0, atol=1e-8)


def test_A_starts_as_nn_linear_draws_it_and_B_at_zero():
    torch.manual_seed(0)
    tuner = branch()
    tuner.attach(tiny('resnet'))
    A, B = (parameter for _, parameter in tuner.trainable())
    bound = 3072**-0.5
    assert (
        not B.any() and A.abs().max() <= bound and A.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    )


def test_count_beside_vgg19_with_its_logits_at_224_pixels():
    with torch.device('meta'):  # its shapes, none of its 144 million numbers
        network = vgg19().requires_grad_(False)
        calls = dry_run(network, torch.empty(1, 3, 224, 224))
    site, tuner = SiteMap(network, Layout(), calls, 'vgg19').find('backbone')[0], branch(rank=10)
    tuner.tune(site)
    assert (site.in_shape, site.out_shape) == ((3, 224, 224), (1000,))
    assert sum(parameter.numel() for _, parameter in tuner.trainable()) == 1_515_280


@pytest.mark.parametrize(
    'config, text',
    [(dict(rank=0), r'rank is 0; it must be at least 1'), (dict(scale=0), r'scale is 0; it must be above 0')],
    ids=str,
)
def test_nonsense_is_refused(config, text):
    with pytest.raises(UserError, match=text):
        branch(**config)


def test_images_of_another_size_are_refused_with_both():
    backbone, _ = tuned('resnet', type='PixelBranch')
    with pytest.raises(UserError, match=r'images of \(3, 32, 32\); given: \(3, 40, 40\)'):
        backbone(images(2, size=40).double())


def nodes(grad_fn: torch.autograd.graph.Node) -> set:
    """The autograd graph below a node."""
    found, todo = set(), [grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [below for below, _ in node.next_functions]
    return found


@pytest.mark.parametrize('family', ['vit', 'resnet'])
def test_graph_is_the_branchs_alone(family):
    backbone, tuner = tuned(family, type='PixelBranch')
    x = images(2).double()
    alone = tuner.deltas['backbone'](x, tiny(family).eval().double()(x))
    assert sorted(node.name() for node in nodes(backbone(x).grad_fn)) == sorted(
        node.name() for node in nodes(alone.grad_fn)
    )
    assert len(nodes(tuned(family, type='Adapter', at='block')[0](x).grad_fn)) > 10 * len(
        nodes(alone.grad_fn)
    )


@functools.cache
def saved_bytes(**config: object) -> tuple[int, int]:
    """Of a ViT-Tiny with this tuner, for 8 images of 64 pixels: what is saved for the backward pass, beside
    parameters, when the frozen network's own forward has ended, and in all."""
    torch.manual_seed(0)
    backbone, tuner = timm_net('vit_tiny_patch16_224', img_size=64), TUNERS.build(config)
    saved: dict[int, torch.UntypedStorage] = {}  # kept, so that no address is used again
    within = []
    backbone.network.register_forward_hook(
        lambda *_: within.append(sum(storage.nbytes() for storage in saved.values()))
    )
    tuner.attach(backbone)
    within.clear()  # the proof of `attach` ran the network too
    parameters = {p.untyped_storage().data_ptr() for p in [*backbone.parameters(), *tuner.parameters()]}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backbone(images(8, size=64))
    return within[0], sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize('name, share', [('SideTuning', 0.5), ('LadderSide', 0.31), ('PixelBranch', 0.03)])
def test_side_networks_save_less_than_lora_and_nothing_within_the_backbone(name, share):
    within, total = saved_bytes(type=name)
    lora_within, lora_total = saved_bytes(type='LoRA')
    assert within == 0 < total <= share * lora_total
    assert lora_within > 0.9 * lora_total
