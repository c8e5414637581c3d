"""deit(x) + B A x, a low-rank branch from the pixels to the 1,000 logits of the frozen DeiT-Tiny: five goldfish.

    python tools/train.py configs/deit_tiny_pixels_goldfish.py --data-root DATA_ROOT \
        --cfg-options model.backbone.checkpoint=DATA_ROOT/weights/deit_tiny_patch16_224.safetensors

Measured: 2 of the 5 images before, all 5 after, on the training images themselves, among 1,000 classes (1,515,280 parameters,
6.1 MB; Tiny-ImageNet images of 64 pixels, seed 0, one CPU thread, float32, torch 2.15). A walk-through, not an accuracy
claim: ImageNet images seen in training.
"""

_base_ = ['vgg19_pixels_goldfish.py']

model = dict(backbone=dict(_delete_=True, type='timm', name='deit_tiny_patch16_224.fb_in1k', classifier=True))
