"""Oxford Flowers 102 and CIFAR-100 with one LoRA r=10 on qkv, DeiT-Tiny. Each task has a head.

    python tools/train.py configs/deit_tiny_multitask.py

Not measured.
"""

_base_ = ['_base_/models/deit_tiny.py', '_base_/recipes/vet.py']

model = dict(backbone=dict(lora_length=10), shared='.*')
dataset = {
    split: dict(
        type='MultiTask',
        tasks=dict(flowers=dict(type='Flowers102', split=split), cifar=dict(type='CIFAR100', split=split)),
    )
    for split in ('train', 'test')
}
