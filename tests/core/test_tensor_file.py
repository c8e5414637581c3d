"""Which tensors hold numbers that are not finite, of every type of number."""

import pytest
import torch

from vet.core.tensor_file import check_tensors, not_finite
from vet.errors import DataError

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn]


@pytest.mark.parametrize('dtype', FLOATS, ids=str)
def test_floats_of_every_width_are_looked_at(dtype):
    plain, broken = torch.tensor([1.0, -2.0]).to(dtype), torch.tensor([1.0, torch.nan]).to(dtype)
    assert not_finite(dict(b=broken, plain=plain, a=broken)) == ['a', 'b']
    check_tensors(dict(plain=plain), dict(plain=plain), 'the file')
    with pytest.raises(DataError, match='the file: b holds numbers that are not finite'):
        check_tensors(dict(b=broken), dict(b=plain), 'the file')


def test_whole_numbers_are_always_finite():
    assert not_finite(dict(a=torch.tensor([2**40]), b=torch.tensor([True]), none=torch.zeros(0))) == []
