"""deit(x) + B A x, a low-rank branch from the pixels to the 1,000 logits of the frozen DeiT-Tiny: five
goldfish.

    python tools/train.py configs/deit_tiny_pixels_goldfish.py --data-root DATA_ROOT \
        --cfg-options model.backbone.checkpoint=DATA_ROOT/weights/deit_tiny_patch16_224.safetensors

There are no test images, so no accuracy is measured.
"""

_base_ = ['vgg19_pixels_goldfish.py']

model = dict(backbone=dict(_delete_=True, type='timm', name='deit_tiny_patch16_224.fb_in1k', classifier=True))
