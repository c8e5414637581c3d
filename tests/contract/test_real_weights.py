"""Three optimizer steps on pretrained weights and real images lower the loss, for every tuner that
works on a ViT.
"""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from tests.contract.cases import CASES, Case
from tests.contract.runs import with_head
from vet.errors import UserError
from vet.registry import BACKBONES


def digits(mean: float, std: float) -> tuple[torch.Tensor, torch.Tensor]:
    """96 images (96, 3, 8, 8) of the digits 5 to 9, and labels 0 to 2. The weights have not seen these
    digits. Some digits share a label.
    """
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images, labels = images[labels > 4][:96].float().view(-1, 1, 8, 8) / 16, labels[labels > 4][:96] % 3
    return (images.expand(-1, 3, -1, -1) - mean) / std, labels


@pytest.mark.slow
@pytest.mark.parametrize(
    'case', [pytest.param(case, id=str(case)) for case in CASES if case.on is None or 'vit' in case.on]
)
def test_three_steps_on_the_digits_vit_lower_the_loss(case: Case):
    torch.manual_seed(0)
    backbone = BACKBONES.build(dict(type='DigitsViT'))
    images, labels = digits(backbone.preprocessing.mean[0], backbone.preprocessing.std[0])
    try:
        model = with_head(backbone, [case.make(backbone)])
    except UserError as error:
        pytest.skip(f'refuses: {error}')
    model.tuners[0].prepare([(images, labels)])
    model.head.requires_grad_(model.tuners[0].head_only)
    torch.nn.init.normal_(model.head.fc.weight, std=0.1)
    optimizer = torch.optim.Adam(model.trainable().values(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
