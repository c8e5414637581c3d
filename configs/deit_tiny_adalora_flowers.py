"""AdaLoRA on every Linear of the blocks, from rank 12 to 8 on average, DeiT-Tiny, Oxford Flowers 102.

    python tools/train.py configs/deit_tiny_adalora_flowers.py

Not measured.
"""

_base_ = ['_base_/models/deit_tiny.py', '_base_/datasets/flowers102.py', '_base_/recipes/vet.py']

model = dict(tuners=[dict(type='AdaLoRA', rank=12, target=8, at='weight')])
