"""Several threads may run one tuned network at once."""

import threading

import pytest
import torch

from tests.contract.cases import CASES
from tests.contract.runs import trained
from tests.nets import images


@pytest.mark.parametrize('family', ['torchvision-vit', 'resnet', 'vit'])
def test_threads_agree_with_one_after_the_other(family):
    model = trained(next(case for case in CASES if case.label == 'weight'), family)
    batches = [images(2, seed=seed) for seed in range(4)]
    with torch.no_grad():
        serial = [model(batch) for batch in batches]
    wrong = []

    def work(i: int) -> None:
        with torch.no_grad():
            for _ in range(10):
                if not torch.equal(model(batches[i]), serial[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
