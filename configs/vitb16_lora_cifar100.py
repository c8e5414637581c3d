"""LoRA r=10 on qkv, ViT-B/16 IN-21k (orig), CIFAR-100.

    python tools/train.py configs/vitb16_lora_cifar100.py

Not measured. ModelScope's card: 92.24.
"""

_base_ = ['_base_/models/vitb16_orig_in21k.py', '_base_/datasets/cifar100.py', '_base_/recipes/vet.py']

model = dict(backbone=dict(lora_length=10))
