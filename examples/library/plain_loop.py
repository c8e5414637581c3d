"""A plain torch loop: LoRA and a new classifier on a network of timm.    python plain_loop.py

For a real task, give pretrained=True, and images of your own.
"""

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import vet


def digits() -> torch.utils.data.TensorDataset:
    """512 images (3, 32, 32) of the digits 0 to 9, and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels[:512], dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    images = F.interpolate(images, size=32).expand(-1, 3, -1, -1)
    return torch.utils.data.TensorDataset(images, torch.tensor(labels[:512]))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model('deit_tiny_patch16_224', img_size=32, patch_size=8, depth=4, num_classes=10)


if __name__ == '__main__':
    tuned = vet.tune(network(), vet.LoRA(rank=8))
    optimizer = torch.optim.AdamW(tuned.trainable().values(), lr=2e-3)
    for images, labels in torch.utils.data.DataLoader(digits(), batch_size=64, shuffle=True):
        loss = F.cross_entropy(tuned(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f'loss {loss.item():.3f}')
    tuned.save('digits')
    again = vet.load('digits', network()).eval()
    assert torch.equal(again(images), tuned.eval()(images))
