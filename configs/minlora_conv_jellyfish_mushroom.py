"""minLoRA's Conv2d form, LoRA r=16 on every convolution of MobileNetV2: jellyfish and mushrooms.

    python tools/train.py configs/minlora_conv_jellyfish_mushroom.py --data-root DATA_ROOT \
        --cfg-options model.backbone.checkpoint=DATA_ROOT/weights/mobilenetv2_100.safetensors

Measured: 18.75 % of the 16 test images before, 75.00 % after, among 1,001 classes (24 training images; 414,016 parameters;
Tiny-ImageNet images of 64 pixels, seed 0, one CPU thread, float32, torch 2.15). A walk-through, not an accuracy claim:
ImageNet images seen in training.
"""

_base_ = ['minlora_jellyfish_mushroom.py']

model = dict(tuners=[dict(type='LoRA', rank=16, alpha=1, at='conv')])
