"""A tuned network is an ordinary module: copies, pickles, types, compilation, checkpoints and processes."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F

import vet
from tests.library.networks import images, labels, trained, vit
from tests.own_nets import TRANSFORMERS


@pytest.fixture(params=['LoRA', 'AdaptFormer', 'BitFit'])
def tuned(request):
    return trained(vet.tune(vit(), getattr(vet, request.param)()))


def test_a_copy_is_independent(tuned):
    scores = tuned(images())
    other = copy.deepcopy(tuned)
    assert torch.equal(other(images()), scores)
    trained(other)
    assert torch.equal(tuned(images()), scores) and not torch.equal(other(images()), scores)
    other.detach()
    assert torch.equal(tuned(images()), scores)


def test_torch_saves_the_whole_module(tuned):
    file = io.BytesIO()
    torch.save(tuned, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(images()), tuned(images())) and set(again.trainable()) == set(tuned.trainable())
    trained(again).detach()


def test_a_state_dict_loads_into_another_tuned_network(tuned):
    kind = type(tuned.tuners[0])
    other = vet.tune(vit(), kind())
    other.load_state_dict(tuned.state_dict())
    assert torch.equal(other(images()), tuned(images()))
    assert set(tuned.network.state_dict()) == set(vit().state_dict())


def test_types_and_modes(tuned):
    assert tuned.to(torch.float64)(images().double()).dtype == torch.float64
    assert not tuned.training and tuned.train().training and tuned.network.training
    assert vet.tune(vit().train(), vet.LoRA(2)).training
    assert not vet.tune(vit().eval(), vet.LoRA(2)).training


def test_attributes_of_the_network_are_those_of_the_tuned_network(tuned):
    assert tuned.num_classes == 5 and tuned.get_classifier() is tuned.network.head
    with pytest.raises(AttributeError, match='nothing'):
        _ = tuned.nothing


@pytest.mark.slow
def test_the_whole_graph_compiles(tuned):
    torch.compiler.reset()
    compiled = torch.compile(tuned, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(images()), tuned(images()))
    compiled.train()
    F.cross_entropy(compiled(images()), labels()).backward()
    assert all(parameter.grad is not None for parameter in tuned.trainable().values())


def gradients(tuned):
    tuned.train()
    tuned.zero_grad()
    F.cross_entropy(tuned(images()), labels()).backward()
    return {name: parameter.grad.clone() for name, parameter in tuned.trainable().items()}


def test_gradient_checkpointing_changes_no_gradient(tuned):
    expected = gradients(tuned)
    tuned.set_grad_checkpointing()
    found = gradients(tuned)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_network_of_transformers():
    net = TRANSFORMERS['vit']().eval()
    before = net(pixel_values=images()).logits
    tuned = vet.tune(net, vet.LoRA(rank=2))
    assert torch.equal(tuned(pixel_values=images()).logits, before)
    names = [name for name in tuned.trainable() if 'thawed' in name]
    assert names == ['tuners.1.thawed.classifier.weight', 'tuners.1.thawed.classifier.bias']
    tuned.train()
    for _ in range(2):
        tuned.zero_grad()
        tuned(pixel_values=images(), labels=labels()).loss.backward()
        assert all(parameter.grad is not None for parameter in tuned.trainable().values())
        tuned.gradient_checkpointing_enable()


TWO = """
import os, sys
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
import vet
from tests.library.networks import images, labels, vit
torch.distributed.init_process_group('gloo', init_method='file://' + sys.argv[2], rank=int(sys.argv[1]), world_size=2)
torch.manual_seed(0)
tuned = vet.tune(vit(), vet.LoRA(rank=2))
if sys.argv[3] == 'DDP':
    net = DDP(tuned)
else:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    net, mesh = tuned, init_device_mesh('cpu', (2,))
    for block in tuned.network.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(tuned, mesh=mesh)
optimizer = torch.optim.SGD(tuned.trainable().values(), lr=0.5)
part = slice(int(sys.argv[1]), None, 2)
for _ in range(2):
    optimizer.zero_grad()
    F.cross_entropy(net(images()[part]), labels()[part]).backward()
    optimizer.step()
whole = {name: p.full_tensor() if hasattr(p, 'full_tensor') else p for name, p in tuned.trainable().items()}
if sys.argv[1] == '0':
    torch.save({name: p.detach() for name, p in whole.items()}, sys.argv[4])
torch.distributed.barrier()
"""


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['DDP', 'FSDP2'])
def test_two_processes_train_what_one_process_trains(kind, tmp_path, python):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        arguments = (tmp_path / 'meeting', kind, tmp_path / 'trained.pth')
        done = list(pool.map(lambda rank: python('-c', TWO, str(rank), *arguments), range(2)))
    assert [each.returncode for each in done] == [0, 0], done[0].stderr + done[1].stderr
    torch.manual_seed(0)
    tuned = vet.tune(vit(), vet.LoRA(rank=2))
    optimizer = torch.optim.SGD(tuned.trainable().values(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(tuned(images()), labels()).backward()
        optimizer.step()
    found = torch.load(tmp_path / 'trained.pth')
    assert set(found) == set(tuned.trainable())
    for name, parameter in tuned.trainable().items():
        torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-4, atol=1e-5)
