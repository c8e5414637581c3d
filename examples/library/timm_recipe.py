"""timm's loader, Mixup, optimizer and scheduler train a tuned network.    python timm_recipe.py"""

import timm.optim
import timm.scheduler
import torch
from plain_loop import digits, network
from timm.data import Mixup, create_loader
from timm.loss import SoftTargetCrossEntropy
from torchvision.transforms.functional import to_pil_image

import vet


class Pictures(torch.utils.data.TensorDataset):
    """PIL images and labels. timm's loader sets `transform`."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = super().__getitem__(index)
        return self.transform(to_pil_image(image / 2 + 0.5)), int(label)


if __name__ == '__main__':
    tuned = vet.tune(network(), vet.LoRA(rank=8))
    settings = dict(use_prefetcher=False, num_workers=0, persistent_workers=False)
    loader = create_loader(Pictures(*digits().tensors), 32, 64, is_training=True, hflip=0.0, **settings)
    mixup = Mixup(mixup_alpha=0.2, num_classes=10)
    criterion = SoftTargetCrossEntropy()
    optimizer = timm.optim.create_optimizer_v2(tuned, opt='adamw', lr=2e-3, weight_decay=0.05)
    scheduler, epochs = timm.scheduler.create_scheduler_v2(optimizer, 'cosine', num_epochs=1)
    for epoch in range(epochs):
        for images, labels in loader:
            images, targets = mixup(images, labels)
            loss = criterion(tuned(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step(epoch + 1)
    print(f'loss {loss.item():.3f}')
    tuned.save('digits')
