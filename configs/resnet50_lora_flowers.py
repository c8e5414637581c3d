"""LoRA r=8 on every convolution of the blocks, ResNet-50, Oxford Flowers 102.

    python tools/train.py configs/resnet50_lora_flowers.py

Not measured.
"""

_base_ = ['_base_/models/resnet50.py', '_base_/datasets/flowers102.py', '_base_/recipes/vet.py']

model = dict(tuners=[dict(type='LoRA', rank=8, at='weight')])
