"""LoRA+ on qkv: B trains with 16 times the learning rate of A. DeiT-Tiny, Oxford Flowers 102.

    python tools/train.py configs/deit_tiny_lora_plus_flowers.py

Hayou, Ghosh, Yu 2024, arXiv:2402.12354. Not measured.
"""

_base_ = ['_base_/models/deit_tiny.py', '_base_/datasets/flowers102.py', '_base_/recipes/vet.py']

model = dict(tuners=[dict(type='LoRA', rank=8)])
train = dict(groups=[dict(params=r'.*\.B', lr_factor=16)])
