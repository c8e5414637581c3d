"""CUB-200-2011: 5,994 train and 5,794 test images; no official validation split."""

dataset = dict(train=dict(type='CUB200', split='train'), val=None, test=dict(type='CUB200', split='test'))
