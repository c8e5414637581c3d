"""Small networks with random weights, as users make them, and one training of a network."""

from typing import Any

import timm
import torch
import torch.nn.functional as F

VIT = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)
CLASSES = 5


def vit(name: str = 'vit_tiny_patch16_224', **settings: Any) -> Any:
    """timm's ViT with 5 classes: the same weights at every call, in every process. In eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, **{**VIT, 'num_classes': CLASSES, **settings}).eval()


def images(count: int = 4, size: int = 32) -> torch.Tensor:
    """images (count, 3, size, size), the same at every call"""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def labels(count: int = 4) -> torch.Tensor:
    return torch.arange(count) % CLASSES


def trained(tuned: Any, steps: int = 3, lr: float = 1e-2) -> Any:
    """The tuned network after some steps of AdamW, in eval mode."""
    optimizer = torch.optim.AdamW(tuned.trainable().values(), lr=lr)
    tuned.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(tuned(images()), labels()).backward()
        optimizer.step()
    return tuned.eval()


def state_of(net: Any) -> dict[str, torch.Tensor]:
    """A copy of the network's state."""
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)
