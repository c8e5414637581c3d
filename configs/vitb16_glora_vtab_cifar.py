"""GLoRA of rank 4 on every Linear, ViT-B/16 IN-21k (orig), VTAB-1k's CIFAR-100.

    python tools/train.py configs/vitb16_glora_vtab_cifar.py

Chavan et al. 2023, arXiv:2306.07967. The values are those of the released code: AdamW at 1e-4, weight decay
1e-4, 500 epochs, batch 64. The code draws the forms at random, and then searches them; here they are fixed.
Not measured.
"""

_base_ = ['_base_/tasks/vitb16_vtab_cifar.py']

model = dict(tuners=[dict(type='GLoRA', rank=4, at=['attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2'])])
train = dict(max_epochs=500, optimizer=dict(lr=1e-4), lr_scheduler=dict(eta_min=0.1))
