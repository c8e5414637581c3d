"""The Trainer of transformers trains a tuned ViT.    python hf_trainer.py"""

import torch
import transformers
from plain_loop import digits

import vet


class Rows(torch.utils.data.TensorDataset):
    """Images and labels by the names that transformers gives them."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return dict(zip(('pixel_values', 'labels'), super().__getitem__(index)))


if __name__ == '__main__':
    torch.manual_seed(0)
    sizes = dict(hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=768)
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=10, **sizes)
    tuned = vet.tune(transformers.ViTForImageClassification(config), vet.LoRA(rank=8))
    arguments = transformers.TrainingArguments(
        'run',
        num_train_epochs=1,
        per_device_train_batch_size=64,
        learning_rate=2e-3,
        save_strategy='no',
        report_to='none',
        use_cpu=True,
    )
    rows = Rows(*digits().tensors)
    trainer = transformers.Trainer(tuned, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    print(f'loss {trainer.evaluate()["eval_loss"]:.3f}')
    tuned.save('digits')
