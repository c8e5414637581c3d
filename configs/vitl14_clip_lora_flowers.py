"""LoRA r=10 on qkv, ViT-L/14 CLIP, Oxford Flowers 102.

    python tools/train.py configs/vitl14_clip_lora_flowers.py

Not measured. ModelScope's card: 95.45.
"""

_base_ = ['_base_/models/vitl14_clip.py', '_base_/datasets/flowers102.py', '_base_/recipes/vet.py']

model = dict(backbone=dict(lora_length=10))
