"""The channel axis of a tensor, from what the layers and the views of one forward show."""

import pytest
import torch
import torch.nn.functional as F

from vet.core.channels import Channels


def linear(x, out=6):
    return F.linear(x, torch.randn(out, x.shape[-1]))


def conv(x, out=6):
    return F.conv2d(x, torch.randn(out, x.shape[1], 1, 1))


def norm(x):
    return F.layer_norm(x, normalized_shape=x.shape[-1:])


def tokens(*shape):
    return linear(torch.randn(*(shape or (2, 5, 4))))


def a_map():
    return conv(torch.randn(2, 3, 4, 5))


@pytest.mark.parametrize(
    'compute, axis',
    [
        pytest.param(tokens, -1, id='linear'),
        pytest.param(lambda: tokens(2, 4), -1, id='one vector for each image'),
        pytest.param(a_map, -3, id='convolution'),
        pytest.param(lambda: a_map().permute(0, 2, 3, 1), -1, id='channels last'),
        pytest.param(lambda: a_map().flatten(2), -2, id='flattened map'),
        pytest.param(lambda: a_map().flatten(2).transpose(1, 2), -1, id='map to tokens'),
        pytest.param(lambda: tokens(2, 20, 4).transpose(1, 2).reshape(2, 6, 4, 5), -3, id='tokens to map'),
        pytest.param(lambda: tokens(2, 8, 8, 3).view(2, 2, 4, 2, 4, 6).transpose(2, 3), -1, id='windows'),
        pytest.param(lambda: tokens() + torch.zeros(2, 5, 6), -1, id='sum'),
        pytest.param(lambda: torch.cat([tokens(), torch.zeros(2, 1, 6)], 1), -1, id='more tokens'),
        pytest.param(lambda: tokens()[:, 1:], -1, id='fewer tokens'),
        pytest.param(lambda: tokens()[..., :2], -1, id='fewer channels'),
        pytest.param(lambda: tokens().unsqueeze(1), -1, id='an axis more'),
        pytest.param(lambda: tokens().split(3, 1)[1], -1, id='a part'),
        pytest.param(lambda: tokens().permute(2, 0, 1), None, id='channels first of all'),
        pytest.param(lambda: torch.zeros(2, 5, 6), None, id='no layer'),
        pytest.param(lambda: tokens() @ torch.ones(6, 3), None, id='mixed'),
        # memory does not tell axes of length 1 apart
        pytest.param(lambda: linear(torch.randn(2, 1, 4), 1), -1, id='one channel'),
        pytest.param(lambda: linear(torch.randn(2, 1, 4), 1).transpose(1, 2), None, id='one channel, turned'),
        pytest.param(
            lambda: conv(torch.randn(2, 3, 1, 5), 1).squeeze(2).unsqueeze(2), None, id='one channel, a view'
        ),
    ],
)
def test_the_channels_are_followed(compute, axis):
    with Channels() as channels:
        made = compute()
        axes = channels.axes(made)
    assert channels.axis(axes) == axis


def test_a_layer_shows_the_channels_of_the_tensor_before():
    with Channels() as channels:
        x = torch.randn(2, 5, 4)
        norm(x.flip(1))
        axes = channels.axes(x)
    assert channels.axis(axes) == -1


def test_when_a_tensor_was_used_last():
    with Channels() as channels:
        x = torch.randn(2, 5, 4)
        axes = channels.axes(x)
        assert not channels.used_after(axes, 0)
        norm(x)
        assert channels.used_after(axes, channels.clock - 1)
        before = channels.clock
        x.sum()
        assert channels.used_after(axes, before)
        assert x.shape and not channels.used_after(axes, channels.clock)  # a shape is no use
