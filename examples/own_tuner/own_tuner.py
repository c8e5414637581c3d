"""Your own tuner: a learned scale of each channel's weights. config.py, in this folder, trains the tuner."""

import torch
from torch import nn

from vet.core.tuner import Tuner
from vet.registry import TUNERS


class Scale(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, weight, bias):  # the layer's weight and bias -> the new weight and bias
        return self.gain * weight, bias


@TUNERS.register_module()
class NormScale(Tuner):
    def tune(self, site):  # called for each site that `at` names
        self.reweight(site, Scale(len(site.weight)))
