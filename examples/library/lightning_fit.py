"""Lightning trains a tuned network.    python lightning_fit.py"""

import lightning
import torch
import torch.nn.functional as F
from plain_loop import digits, network

import vet


class Classifier(lightning.LightningModule):
    """A network with LoRA, as a module of Lightning."""

    def __init__(self) -> None:
        super().__init__()
        self.tuned = vet.tune(network(), vet.LoRA(rank=8))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.tuned(images), labels)
        self.log('loss', loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.tuned.trainable().values(), lr=2e-3)


if __name__ == '__main__':
    classifier = Classifier()
    trainer = lightning.Trainer(max_epochs=1, accelerator='cpu', logger=False, enable_checkpointing=False)
    trainer.fit(classifier, torch.utils.data.DataLoader(digits(), batch_size=64, shuffle=True))
    print(f'loss {trainer.callback_metrics["loss"]:.3f}')
    classifier.tuned.save('digits')
