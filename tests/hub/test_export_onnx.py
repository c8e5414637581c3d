"""Every tuner in ONNX, as the contract suite has trained it: onnxruntime computes what the model does,
for any number of images.
"""

import logging

import onnxruntime
import pytest
import torch

from tests.contract.cases import CASES
from tests.contract.runs import Refusal, logits, run, trained
from tests.nets import images
from vet.hub.formats import FORMATS


@pytest.fixture(autouse=True)
def _untraced(monkeypatch):
    # thousands of records, which pytest would keep
    monkeypatch.setattr(logging.getLogger('torch.__trace'), 'propagate', False)


@pytest.mark.slow
@pytest.mark.parametrize('case', [case for case in CASES if case.on is None or 'vit' in case.on], ids=str)
def test_onnxruntime_computes_what_the_tuned_model_does(tmp_path, case):
    if isinstance(run(case, 'vit'), Refusal):
        pytest.skip(f'refuses: {run(case, "vit").error}')
    x, model = images(5, seed=8), trained(case, 'vit')
    expected = logits(model, x)
    FORMATS['onnx'].write(model.requires_grad_(False), tmp_path / 'model.onnx', '{}')
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx', providers=['CPUExecutionProvider'])
    for count in (1, 2, 5):
        [given] = session.run(['logits'], {'images': x[:count].numpy()})
        assert (torch.from_numpy(given) - expected[:count]).abs().max() < 1e-4
    assert expected.abs().max() > 0.1 and (expected[0] - expected[1]).abs().max() > 1e-3
