"""Example: an input of a network, for the dry run and for the proof.

core imports this file. library.py makes examples for a user's network.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vet.core.channels import tensors_in
from vet.errors import UserError, shown
from vet.torch_private import map_tensors


@dataclass(frozen=True)
class Example:
    """The arguments of one call of a network. The first axis of each tensor counts images."""

    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: object) -> 'Example':
        """The example of a tensor, a list of images, a tuple of arguments, or a dict of keyword arguments.

        UserError if there is no tensor with axes.
        """
        if next(tensors_in(given), None) is None:
            raise UserError(
                f'example is {shown(given)}; allowed: a tensor (B, 3, H, W), a list of images (3, H, W), a '
                'tuple of arguments, or a dict of keyword arguments, such as '
                'dict(pixel_values=torch.zeros(1, 3, 224, 224)).'
            )
        if not all(map(len, tensors_in(given))):
            raise UserError('example holds no image; give at least one: example=torch.zeros(1, 3, 224, 224).')
        if isinstance(given, Mapping):
            return cls(kwargs=dict(given))
        return cls(given if isinstance(given, tuple) else (given,))

    def call(self, network: nn.Module) -> Any:
        """The network's output."""
        return network(*self.args, **self.kwargs)

    def of_images(self, count: int) -> 'Example':
        """An example of `count` images, each the first image of this example."""
        images = len(next(self._tensors()))

        def repeat(value: object) -> Any:
            if isinstance(value, torch.Tensor):
                is_batch = value.dim() and len(value) == images
                return value[:1].expand(count, *value.shape[1:]) if is_batch else value
            if isinstance(value, list) and all(isinstance(tensor, torch.Tensor) for tensor in value):
                return value[:1] * count
            if isinstance(value, dict):
                return {key: repeat(inner) for key, inner in value.items()}
            return map_tensors(repeat, value) if isinstance(value, tuple) else value

        return Example(tuple(map(repeat, self.args)), repeat(dict(self.kwargs)))

    def of_rows(self, rows: list[int]) -> 'Example':
        """An example of some of the images, by their places."""
        images = self.images

        def choose(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return value[rows] if value.dim() and len(value) == images else value
            if isinstance(value, list) and len(value) == images:
                return [value[row] for row in rows]
            return map_tensors(choose, value) if isinstance(value, tuple | list | dict) else value

        return Example(
            tuple(map(choose, self.args)), {name: choose(self.kwargs[name]) for name in self.kwargs}
        )

    @property
    def images(self) -> int:
        """The number of images of the input. For a list of images, as detection networks take, its length."""
        first = next(iter((*self.args, *self.kwargs.values())), None)
        return len(first) if isinstance(first, list) else len(next(self._tensors()))

    def to(self, like: torch.Tensor) -> 'Example':
        """The example on the device of `like`. Its floating point numbers have the type of `like`."""

        def change(tensor: torch.Tensor) -> torch.Tensor:
            kind = like.dtype if tensor.is_floating_point() else tensor.dtype
            return tensor.detach().to(like.device, kind)

        return Example(*map_tensors(change, (self.args, dict(self.kwargs))))

    def difference_to(self, other: 'Example') -> str:
        """The difference of the first tensor to the first tensor of `other`, in words.

        '': they differ at most in the number of images.
        """
        given, wanted = next(self._tensors(), None), next(other._tensors())
        if given is None:
            return f'it holds no tensor, but the example was {tuple(wanted.shape)}'
        if _form(given) == _form(wanted):
            return ''
        return f'it is {_whole(given)}, but the network was tuned with {_whole(wanted)}'

    def _tensors(self) -> Any:
        return tensors_in((self.args, dict(self.kwargs)))

    def __str__(self) -> str:
        shapes = [tuple(tensor.shape) for tensor in self._tensors()]
        if len(shapes) == 1 and len(shapes[0]) in (3, 4):
            return f'an image of {shapes[0][-2:]}'
        return f'an input of {", ".join(map(str, shapes))}'

    def told(self) -> str:
        """The names, shapes and types of all tensors: '(1, 3, 8, 8)', 'mask=(1, 8) of bool'."""
        named = [('', value) for value in self.args] + [
            (f'{name}=', self.kwargs[name]) for name in self.kwargs
        ]
        return ', '.join(name + _told(tensor) for name, value in named for tensor in tensors_in(value))


def _form(tensor: torch.Tensor) -> tuple[object, ...]:
    """The facts that are equal in two batches of the same form."""
    return tensor.shape[1:], tensor.dtype, tensor.device


def _whole(tensor: torch.Tensor) -> str:
    """'(1, 3, 8, 8) of float32 on cpu'"""
    return f'{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix("torch.")} on {tensor.device}'


def _told(tensor: torch.Tensor) -> str:
    """The shape of a tensor. If its numbers are no floating point numbers, their type too."""
    kind = '' if tensor.is_floating_point() else f' of {str(tensor.dtype).removeprefix("torch.")}'
    return f'{tuple(tensor.shape)}{kind}'
