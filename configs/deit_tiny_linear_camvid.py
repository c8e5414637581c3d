"""A linear head for masks on the frozen DeiT-Tiny: CamVid.

    vet train configs/deit_tiny_linear_camvid.py --data-root DIR

DIR has camvid/{train,val,test}/{images,masks}/.
"""

_base_ = 'deit_tiny_lora_camvid.py'

model = dict(tuners=[dict(type='LinearProbe')])
