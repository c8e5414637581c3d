"""vet: vision efficient tuning. A frozen pretrained backbone, a few trained numbers, a small file."""

__version__ = '0.1.0'
