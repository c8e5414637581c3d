"""The means that training shows."""

import torch

from vet.engine import meter as module
from vet.engine.device import make_accelerator
from vet.engine.meter import Meter


def add(meter, losses, right, weights):
    """Images, of which `right` says which are answered rightly."""
    meter.add(torch.tensor(losses), torch.tensor(right).float(), torch.tensor(weights))


def test_means_since_the_last_reading_and_of_each_epoch_alone():
    accelerator, meter = make_accelerator('cpu', 'fp32'), Meter(torch.device('cpu'))
    add(meter, [1.0, 3.0], [True, False], [1.0, 1.0])
    assert meter.read(accelerator)[:2] == (2.0, 0.5)
    add(meter, [6.0, 5.0], [True, True], [1.0, 0.0])  # an image of weight 0 only fills a batch
    assert meter.read(accelerator)[:2] == (6.0, 1.0)
    assert meter.peek_epoch() == meter.peek_epoch() == (10 / 3, 2 / 3)
    meter.end_epoch()
    add(meter, [0.5], [False], [1.0])
    meter.read(accelerator)
    assert meter.peek_epoch() == (0.5, 0.0)


def test_a_meter_goes_on_from_what_another_counted():
    accelerator, meter, other = (
        make_accelerator('cpu', 'fp32'),
        Meter(torch.device('cpu')),
        Meter(torch.device('cpu')),
    )
    add(meter, [1.0, 3.0], [True, False], [1.0, 1.0])
    meter.read(accelerator)
    add(meter, [8.0], [True], [1.0])
    other.restore(meter.state(accelerator), is_main=True)
    for one in (meter, other):
        add(one, [4.0], [True], [1.0])
        assert one.read(accelerator)[:2] == (6.0, 1.0)
        assert one.peek_epoch() == (16 / 4, 3 / 4)


def test_images_per_second_without_the_time_of_a_validation(monkeypatch):
    times = iter([0.0, 4.0, 4.0, 100.0, 102.0, 102.0])
    monkeypatch.setattr(module.time, 'perf_counter', lambda: next(times))
    accelerator, meter = make_accelerator('cpu', 'fp32'), Meter(torch.device('cpu'))
    add(meter, [1.0, 3.0], [True, False], [1.0, 1.0])
    assert meter.read(accelerator)[2] == 2 / 4
    meter.restart_clock()
    add(meter, [1.0] * 6, [True] * 6, [1.0] * 6)
    assert meter.read(accelerator)[2] == 6 / 2
