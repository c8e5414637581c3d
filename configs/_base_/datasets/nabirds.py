"""NABirds: 23,929 train and 24,633 test images; no official validation split."""

dataset = dict(train=dict(type='NABirds', split='train'), val=None, test=dict(type='NABirds', split='test'))
