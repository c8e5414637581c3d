"""Your own dataset, backbone and head. config.py, in this folder, trains them."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from vet.core.backbone import Backbone, Preprocessing
from vet.core.site_map import Layout
from vet.registry import BACKBONES, DATASETS, HEADS


@DATASETS.register_module()
class Parity:
    """Handwritten digits, even or odd.

    A dataset needs only `classes`, and items of an image and a label.
    """

    classes = ('even', 'odd')

    def __init__(self, split):
        images, numbers = load_digits(return_X_y=True)
        taken = slice(0, 1200) if split == 'train' else slice(1200, None)
        self.images = images[taken].reshape(-1, 8, 8) / 16
        self.targets = (numbers[taken] % 2).tolist()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.targets[index]


@BACKBONES.register_module()
def RandomConv(width=32):
    """Two convolutions with fixed random weights.

    `layout` says which modules play which role. `identity` says how to build the backbone again.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
        )
    return Backbone(
        network,
        Layout(roles=dict(block='[02]')),
        Preprocessing(size=(8, 8), crop_pct=1.0),
        identity=dict(type='RandomConv', width=width),
    )


@HEADS.register_module()
class CosineHead(nn.Module):
    """logits = scale cos(f, w): features (B, C) -> (B, K)"""

    def __init__(self, in_features, num_classes, scale=10.0):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.randn(num_classes, in_features))

    def forward(self, features):
        return self.scale * F.normalize(features, dim=1) @ F.normalize(self.weight, dim=1).T
