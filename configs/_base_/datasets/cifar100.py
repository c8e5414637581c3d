"""CIFAR-100: 50,000 train and 10,000 test images; no official validation split."""

dataset = dict(train=dict(type='CIFAR100', split='train'), val=None, test=dict(type='CIFAR100', split='test'))
