"""minLoRA's Conv2d form, LoRA r=16 on every convolution of MobileNetV2: jellyfish and mushrooms.

    python tools/train.py configs/minlora_conv_jellyfish_mushroom.py --data-root DATA_ROOT \
        --cfg-options model.backbone.checkpoint=DATA_ROOT/weights/mobilenetv2_100.safetensors

This config is a walk-through, not an accuracy claim: the weights have seen these ImageNet images in training.
docs/tuners.md has the numbers.
"""

_base_ = ['minlora_jellyfish_mushroom.py']

model = dict(tuners=[dict(type='LoRA', rank=16, alpha=1, at='conv')])
