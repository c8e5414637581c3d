"""The quickstart with a tuner from own_tuner.py.

    python tools/train.py examples/own_tuner/config.py --work-dir work_dirs/own
    python tools/test.py work_dirs/own --import examples/own_tuner/own_tuner.py

From Python: `import own_tuner` before pipeline(…). A model folder names its plugins, but holds no code.
"""

_base_ = ['../../configs/quickstart.py']

custom_imports = dict(imports=['own_tuner'])
model = dict(backbone=dict(_delete_=True, type='DigitsViT'), tuners=[dict(type='NormScale', at='norm')])
