"""vet.tune on the networks of transformers, torchvision and OpenCLIP, and on a user's own class: LoRA's default
covers each attention, every trained tensor gets a gradient, and the network comes back as it was.
"""

import copy

import pytest
import torch
import transformers as hf
from torch import nn

import vet
from tests.library import networks
from tests.own_nets import TORCHVISION, TRANSFORMERS, VIT, open_clip
from vet.backbones.libraries import classifier_of
from vet.core.channels import tensors_in
from vet.errors import UserError
from vet.torch_private import hooks_before

ATTENDING = [name for name in TRANSFORMERS if name not in ('convnext', 'resnet')]
POOLS = {'siglip': 1}  # attentions behind the blocks, which a tuner acts at only if its `at` says so


def trained_once(tuned, out):
    """The names of the trained tensors that get no gradient."""
    with torch.no_grad():
        for name, parameter in tuned.trainable().items():
            if '.deltas.' in name:
                parameter.normal_(0, 0.1)
    sum(tensor.sum() for tensor in tensors_in(out(tuned)) if tensor.requires_grad).backward()
    return [name for name, parameter in tuned.trainable().items() if parameter.grad is None]


@pytest.mark.filterwarnings('ignore:vet knows no classifier')
@pytest.mark.parametrize('name', ATTENDING)
def test_lora_covers_each_attention_of_transformers(name):
    torch.manual_seed(0)
    net = TRANSFORMERS[name]().eval()
    keys = list(net.state_dict())
    tuned = vet.tune(net, vet.LoRA(rank=4))
    reached, missed = tuned.tuners[0].coverage().attentions
    assert reached and len(missed) == POOLS.get(name, 0)
    images = tuned.example().kwargs['pixel_values']
    assert trained_once(tuned, lambda module: module(pixel_values=images)) == []
    assert list(net.state_dict()) == keys
    assert tuned.detach() is net


@pytest.mark.parametrize('name', ['convnext', 'resnet'])
def test_a_network_without_attention_is_tuned_where_the_message_says(name):
    net = TRANSFORMERS[name]().eval()
    with pytest.raises(UserError, match="at='weight' works"):
        vet.tune(net, vet.LoRA(rank=4))
    tuned = vet.tune(net, vet.LoRA(rank=4, at='weight'))
    images = tuned.example().kwargs['pixel_values']
    assert trained_once(tuned, lambda module: module(pixel_values=images)) == []


@pytest.mark.parametrize('name', ['segformer', 'vit'])
def test_hidden_states_are_not_doubled(name):
    """transformers installs hooks in the first forward that asks for them, and notes that in a flag of the
    network.
    """
    torch.manual_seed(0)
    net, fresh = (TRANSFORMERS[name]().eval() for _ in range(2))
    net.config.output_hidden_states = fresh.config.output_hidden_states = True
    tuned = vet.tune(net, vet.LoRA(rank=4)).eval()
    images = tuned.example().kwargs['pixel_values']
    with torch.no_grad():
        ours, theirs = (module(pixel_values=images) for module in (tuned, fresh))
    assert len(ours.hidden_states) == len(theirs.hidden_states)


@pytest.mark.parametrize('name', ['lraspp', pytest.param('fcn', marks=pytest.mark.slow)])
def test_a_segmentation_network_trains(name):
    tuned = vet.tune(TORCHVISION[name](), vet.LoRA(rank=4, at='weight'), example=torch.zeros(1, 3, 64, 64))
    images = torch.randn(2, 3, 64, 64)
    assert trained_once(tuned, lambda module: module(images)['out']) == []


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:vet knows no classifier')
@pytest.mark.parametrize('name', ['fasterrcnn', 'retinanet'])
def test_a_detection_network_trains(name):
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
    tuned = vet.tune(TORCHVISION[name](), vet.LoRA(rank=4, at='weight'), example=images).train()
    targets = [dict(boxes=torch.tensor([[4.0, 4, 40, 40]]), labels=torch.tensor([1]))] * 2
    assert trained_once(tuned, lambda module: torch.stack([*module(images, targets).values()])) == []


@pytest.mark.filterwarnings('ignore:vet knows no classifier')
def test_open_clip_is_tuned_where_images_flow():
    tuned = vet.tune(open_clip().eval(), vet.LoRA(rank=4))
    found, missed = tuned.tuners[0].coverage().attentions
    assert len(found) == 2 and not missed and all(name.startswith('visual.') for name in found)
    images = torch.randn(2, 3, 32, 32)
    before = tuned.network.encode_image(images)
    assert trained_once(tuned, lambda module: module.encode_image(images)) == []
    assert not torch.equal(before, tuned.network.encode_image(images))


CLASSIFIERS = {
    'segformer': ['decode_head.classifier'],
    'yolos': ['class_labels_classifier'],
    'swiftformer': ['head', 'dist_head'],
    'deeplabv3': ['classifier', 'aux_classifier'],
    'fasterrcnn': ['roi_heads.box_predictor'],
}


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_the_classifier_is_what_the_library_calls_it(name):
    net = {**TRANSFORMERS, **TORCHVISION}[name]()
    names = {
        f'{path}.{name}'
        for path in CLASSIFIERS[name]
        for name, _ in net.get_submodule(path).named_parameters()
    }
    found = classifier_of(net)
    assert {name for name, _ in net.named_parameters() if name.startswith(tuple(found))} == names


def test_a_network_of_timm_in_one_of_transformers():
    net = hf.TimmWrapperForImageClassification(
        hf.TimmWrapperConfig(architecture='vit_tiny_patch16_224', num_labels=5, model_args=networks.VIT)
    )
    tuned = vet.tune(net.eval(), vet.LoRA(rank=2))
    assert tuned.whole == ['timm_model.head.weight', 'timm_model.head.bias']
    assert trained_once(tuned, lambda module: module(pixel_values=networks.images()).logits) == []


def test_an_input_that_vet_guessed_is_not_advised_again():
    net = hf.VideoMAEForVideoClassification(hf.VideoMAEConfig(**VIT, num_frames=4, num_labels=3))
    with pytest.raises(UserError, match=r'vet guessed this input.*example=dict\(pixel_values=') as told:
        vet.tune(net, vet.LoRA(rank=2))
    assert 'takes images' not in str(told.value)
    tuned = vet.tune(net, vet.LoRA(rank=2), example=dict(pixel_values=torch.zeros(1, 4, 3, 32, 32)))
    assert tuned.whole == ['classifier.weight', 'classifier.bias']


class Own(nn.Module):
    """A user's class, whose attention is a formula of its own, and whose images have one channel."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 4, 4)
        self.query, self.key, self.value, self.head = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, images):
        x = self.stem(images).flatten(2).transpose(1, 2)
        p = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(-1)
        return dict(scores=self.head((p @ self.value(x)).mean(1)))


@pytest.mark.filterwarnings('ignore:vet knows no classifier')
def test_a_class_of_the_users_own():
    images = torch.randn(2, 1, 16, 16)
    tuned = vet.tune(Own(), vet.LoRA(rank=2), example=images)
    assert set(tuned.tuners[0].deltas) == {'query', 'key', 'value'}
    tuned.detach()
    tuned = vet.tune(Own(), vet.LoRA(rank=2, at='*.query'), example=images, train='head')
    assert set(tuned.tuners[0].deltas) == {'query'}
    assert trained_once(tuned, lambda module: module(images)) == []
    with pytest.raises(UserError, match='example=torch.zeros'):
        vet.tune(Own(), vet.LoRA(rank=2))
    with pytest.raises(UserError, match=r"name modules by their paths, such as at='\*.query'"):
        vet.tune(Own(), vet.LoRA(rank=2, at='mlp'), example=images)


class Encoder(nn.Module):
    """A user's class with torch's own layers, which compute all in one function in eval mode."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 5)

    def forward(self, images):
        return self.head(self.encoder(self.stem(images).flatten(2).transpose(1, 2)).mean(1))


@torch.no_grad()
@pytest.mark.filterwarnings('error:.*get no gradient', 'ignore:vet knows no classifier')
@pytest.mark.parametrize(
    'tuner', [vet.LoRA(rank=2), vet.SSF(), vet.OFT()], ids=lambda tuner: type(tuner).__name__
)
def test_tuners_act_in_the_fast_path_of_torch(tuner):
    torch.manual_seed(0)
    net, images = Encoder().eval(), networks.images()
    before = net(images)
    tuned = vet.tune(net, tuner, example=images)
    for parameter in tuned.trainable().values():
        parameter.add_(torch.randn_like(parameter), alpha=0.3)
    expected = tuned.train()(images)  # which calls each layer
    scores = tuned.eval()(images)
    assert not torch.allclose(expected, before, atol=1e-2)
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(tuned.merge()(images), expected)
    assert torch.equal(tuned.unmerge()(images), scores)
    with tuned.using(None):
        assert torch.equal(net(images), before)
    assert torch.equal(copy.deepcopy(tuned)(images), scores)
    assert torch.equal(tuned.detach()(images), before)
    assert not any(map(hooks_before, net.modules()))
