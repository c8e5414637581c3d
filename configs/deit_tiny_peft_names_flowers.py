"""LoRA under PEFT's names for its options, DeiT-Tiny, Oxford Flowers 102.

    python tools/train.py configs/deit_tiny_peft_names_flowers.py

Not measured.
"""

_base_ = ['_base_/models/deit_tiny.py', '_base_/datasets/flowers102.py', '_base_/recipes/vet.py']

model = dict(tuners=[dict(type='LoRA', r=16, lora_alpha=16, lora_dropout=0.1, target_modules=['qkv'])])
