"""Mistakes in a user's own code: each is a UserError that says what to do, and leaves the network as it was."""

import math

import pytest
import timm
import torch
from torch import nn

import vet
from tests.library.networks import images, same, state_of, trained, vit
from tests.own_nets import TRANSFORMERS
from vet.errors import UserError


class Scaled(nn.Module):
    """Two parameters, the name of one of which begins with the name of the other."""

    def __init__(self):
        super().__init__()
        self.mid = nn.Linear(3, 8)
        self.scale, self.scale_two = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8))
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.mid(x.mean((2, 3))) * self.scale * self.scale_two)


@pytest.mark.parametrize(
    'arguments, text',
    [
        (dict(alpha=math.nan), 'alpha is nan; it must be a number'),
        (dict(alpha=-1), 'alpha is -1; it must be above 0'),
        (dict(lora_alpha=-1), 'lora_alpha is -1; it must be above 0'),
        (dict(seed=-1), 'seed is -1; it must be at least 0'),
        (dict(r=4, rank=10), 'rank is 10 and r is 4, two names of one argument'),
        (dict(at=3), 'at is 3; it must be a text'),
        (dict(at=[]), r'at is \[\]; it must be not empty'),
        (dict(nonsense=1), "unknown argument of LoRA 'nonsense'"),
        (dict(modules_to_save=['head']), r'vet\.tune\(…, train=\['),
        (dict(use_rslora=True), "Give variant='rslora'"),
        (dict(use_dora=True), "Give variant='dora'"),
        (dict(bias='none'), 'Leave it out'),
        (dict(init_lora_weights='pissa'), "Give variant='pissa'"),
        (dict(rank_pattern={}), 'Give rank={'),
        (dict(target_modules='all-linear'), "at='weight'"),
    ],
)
def test_the_arguments_of_a_tuner_are_checked_when_it_is_made(arguments, text):
    with pytest.raises(UserError, match=text):
        vet.LoRA(**arguments)


def test_every_tuner_checks_its_arguments():
    with pytest.raises(UserError, match="unknown argument of Adapter 'length'. Allowed: .*width"):
        vet.Adapter(length=3)
    with pytest.raises(UserError, match='width is -1; it must be'):
        vet.Adapter(width=-1)


@pytest.mark.parametrize(
    'arguments, text',
    [
        (dict(train=3), r"train is \[3\]; allowed: .*train='head"),
        (
            dict(train='hed'),
            "Did you mean 'head'.* Allowed: blocks, cls_token, head, norm, patch_embed, pos_embed",
        ),
        (dict(example=torch.zeros(0, 3, 32, 32)), 'example holds no image'),
    ],
)
def test_tune_refuses_what_it_cannot_read(arguments, text):
    net = vit()
    before = state_of(net)
    with pytest.raises(UserError, match=text) as told:
        vet.tune(net, vet.LoRA(rank=2), **arguments)
    assert len(str(told.value)) < 400
    assert same(state_of(net), before) and all(each.requires_grad for each in net.parameters())


def test_a_network_without_parameters_is_refused():
    with pytest.raises(UserError, match='Identity, which has no parameters'):
        vet.tune(nn.Identity(), vet.LoRA(rank=2))


@pytest.mark.parametrize('folder', [None, 3])
def test_a_folder_is_a_path(folder):
    for refused in (
        lambda: vet.load(folder, vit()),
        lambda: vet.tune(vit(), vet.LoRA(rank=2)).save(folder),
        lambda: vet.pipeline(model=folder or 3),
    ):
        with pytest.raises(UserError, match='folder is .*; allowed: the path of a folder'):
            refused()


@pytest.mark.parametrize(
    'arguments, text',
    [
        (dict(classes=['a', 'a', 'b', 'c', 'd']), "classes has 'a' 2 times"),
        (dict(classes='abcde'), "classes is 'abcde'; allowed: a list of names"),
        (dict(classes={'a'}), "classes is {'a'}; allowed: a list of names"),
        (dict(classes=3), 'classes is 3; allowed: a list of names'),
        (dict(preprocessing=3), 'preprocessing is 3; allowed: a dict'),
    ],
)
def test_save_refuses_what_it_cannot_write(arguments, text, tmp_path):
    tuned = vet.tune(vit(), vet.LoRA(rank=2))
    with pytest.raises(UserError, match=text):
        tuned.save(tmp_path / 'it', **arguments)
    assert not (tmp_path / 'it').exists()


def test_a_name_in_train_is_a_whole_path():
    tuned = vet.tune(Scaled(), vet.LoRA(rank=2, at='mid'), train='scale', example=torch.zeros(1, 3, 32, 32))
    assert [name for name in tuned.trainable() if 'scale' in name] == ['tuners.1.thawed.scale']
    assert tuned.whole == ['scale']


def test_a_pipeline_leaves_the_given_network_as_it_was(tmp_path):
    trained(vet.tune(vit(), vet.LoRA(rank=2))).save(tmp_path / 'it')
    net = vit()
    net.norm.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in net.parameters()]
    before, scores = state_of(net), net(images())
    vet.pipeline(model=tmp_path / 'it', network=net)
    assert [parameter.requires_grad for parameter in net.parameters()] == flags
    assert same(state_of(net), before) and torch.equal(net(images()), scores)


NEAR = [
    (dict(at='*.qvk'), r"Did you mean '\*.qkv'"),
    (dict(at='blocks.0.atn.qkv'), "Did you mean 'blocks.0.attn.qkv'"),
    (dict(at='blocks.*.atn'), r"Did you mean 'blocks\.\*\.attn'"),
    (dict(at='block.*'), r"Did you mean 'blocks.\*'"),
    (dict(at='*.query'), "Did you mean 'attn.qkv'"),
    (dict(at='atn.qkv[-1:]'), "Did you mean .*'attn.qkv'"),
    (dict(target_modules=['qvk']), r"Did you mean '\*.qkv'"),
    (dict(at='weight', rank={'blocks.0.atn': 2}), "Did you mean 'blocks.0.attn"),
]


@pytest.mark.parametrize('arguments, text', NEAR)
def test_a_missing_place_names_the_nearest_places(arguments, text):
    with pytest.raises(UserError, match=text):
        vet.tune(vit(), vet.LoRA(**{'rank': 2, **arguments}))


@pytest.mark.parametrize(
    'arguments, text',
    [
        (dict(train='hed.*'), r"Did you mean 'head.\*'"),
        (dict(train='*.nrm1.weight'), r"Did you mean '\*.norm1.weight'"),
        (dict(train='blocks.*.nrm1.bias'), r"Did you mean 'blocks.\*.norm1.bias'"),
        (dict(modules_to_save='nrm1'), "Did you mean 'norm1'"),
    ],
)
def test_a_missing_parameter_names_the_nearest_parameters(arguments, text):
    with pytest.raises(UserError, match=text):
        vet.tune(vit(), vet.LoRA(2), **arguments)


class Flat(nn.Module):
    """Takes flat images of 8 pixels by keyword."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(192, 8)

    def forward(self, *, picture):
        return self.fc(picture.flatten(1))


UNFIT = [
    (vit, images(1, 24), r'given as \(1, 3, 24, 24\) .*takes images \(B, 3, 32, 32\).*example=torch.zeros\(1, 3, 32'),
    (vit, torch.zeros(3, 32, 32), r'given as \(3, 32, 32\)'),
    (vit, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r'given as \(1, 3, 32, 32\) of uint8'),
    (vit, dict(pixels=images(1)), r'given as pixels=\(1, 3, 32, 32\) \(TypeError'),
    (lambda: nn.Conv2d(1, 4, 3), None, r"first layer '' \(Conv2d\) takes 1 channels.*zeros\(1, 1, height, width"),
    (Flat, None, r"given as \(1, 3, 224, 224\) .*'fc' takes 192 numbers for each row.*example=dict\(…\)"),
    (TRANSFORMERS['vit'], dict(x=images(1)), r'example=dict\(pixel_values=torch.zeros\(1, 3, 32, 32\)\)'),
]  # fmt: skip


@pytest.mark.parametrize('make, example, text', UNFIT, ids=[text for *_, text in UNFIT])
def test_an_example_that_does_not_fit_is_answered_with_one_that_does(make, example, text):
    net = make()
    before = state_of(net)
    with pytest.raises(UserError, match=text):
        vet.tune(net, vet.LoRA(2, at='*'), train='*', example=example)
    assert same(state_of(net), before) and all(each.requires_grad for each in net.parameters())


@pytest.mark.parametrize('argument', ['train', 'modules_to_save'])
@pytest.mark.parametrize('value', [5, True, object, [None], {1: 2}, lambda: 0])
def test_names_of_what_trains_whole_are_texts(argument, value):
    with pytest.raises(UserError, match=f'^{argument} is .*; allowed: the name of a'):
        vet.tune(vit(), vet.LoRA(2), **{argument: value})


@pytest.mark.parametrize('folder', ['', '.', '..', 'a\0b', 5, None])
def test_a_folder_without_a_name_is_refused(folder):
    with pytest.raises(UserError, match='folder is .*; allowed: the path of a folder'):
        vet.tune(vit(), vet.LoRA(2)).save(folder)


@pytest.mark.parametrize('name', [['a'], {'a': 1}, 5, 'nothing'])
def test_a_set_that_is_not_there_is_named(name):
    with pytest.raises(UserError, match='unknown set of tuners'):
        vet.tune(vit(), vet.LoRA(2)).use(name)


@pytest.mark.parametrize(
    'given, words',
    [
        (lambda: images()[0], r'it is \(3, 32, 32\) of float32 on cpu'),
        (lambda: images().permute(0, 2, 3, 1), r'it is \(4, 32, 32, 3\)'),
        (lambda: torch.zeros(2, 3, 32, 32, dtype=torch.uint8), r'it is \(2, 3, 32, 32\) of uint8'),
        (lambda: images().double(), r'it is \(4, 3, 32, 32\) of float64'),
        (lambda: images(size=48), r'it is \(4, 3, 48, 48\)'),
    ],
    ids=['no batch', 'channels last', 'uint8', 'float64', 'size'],
)
def test_an_input_of_another_form_is_named(given, words):
    tuned = vet.tune(vit(), vet.LoRA(2))
    wanted = r'but the network was tuned with \(1, 3, 32, 32\) of float32 on cpu \(\w+Error: '
    with pytest.raises(UserError, match=f'^VisionTransformer does not take this input: {words}.*{wanted}'):
        tuned(given())
    with pytest.raises(RuntimeError, match='a fault of the network'):  # the form is right
        tuned.network.norm.register_forward_hook(_fail)
        tuned(images())


def _fail(*args):
    raise RuntimeError('a fault of the network')


def test_an_input_of_another_form_that_the_network_takes_is_taken():
    tuned = vet.tune(timm.create_model('resnet10t', num_classes=5).eval(), vet.LoRA(2, at='conv'))
    assert tuned(images(2, 48)).shape == (2, 5)
    with torch.autocast('cpu', torch.bfloat16):
        assert tuned(images(2, 64).bfloat16()).shape == (2, 5)


def test_weights_of_inference_mode_and_sets_after_detach_are_refused():
    with torch.inference_mode():
        net = vit()
    with pytest.raises(
        UserError, match=r'within torch.inference_mode\(\), so that its weights can never train'
    ):
        vet.tune(net, vet.LoRA(2))
    tuned = vet.tune(vit(), vet.LoRA(2))
    tuned.detach()
    with pytest.raises(UserError, match='the tuners are detached. Tune the network again'):
        tuned.add('birds', vet.LoRA(2))


@pytest.mark.slow
def test_a_network_that_compiles_itself_is_watched_uncompiled(recwarn):
    net, graphs = vit(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    net.compile(backend=backend)
    before = net(images())
    count = len(graphs)
    tuned = vet.tune(net, vet.LoRA(2, parts='qv'))
    assert len(graphs) == count  # the dry run and the proof compile nothing
    with torch.no_grad():
        for parameter in tuned.trainable().values():
            parameter.add_(0.1)
    assert not torch.allclose(tuned(images()), before)
    assert len(graphs) > count


class WithText(nn.Module):
    """Convolutions of images, and an attention of texts that a forward of images does not call."""

    def __init__(self):
        super().__init__()
        self.text = nn.MultiheadAttention(8, 2)
        self.stem, self.fc = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.stem(x).mean((2, 3)))


def test_the_advice_names_no_module_that_the_forward_does_not_call():
    with pytest.raises(UserError, match="unknown role or module path 'attn.qkv'.*at='weight' works"):
        vet.tune(WithText(), vet.LoRA(2), train='fc.*', example=images(1))


def test_the_advice_for_an_input_tells_of_further_arguments():
    with pytest.raises(
        UserError, match=r'example=dict\(pixel_values=.*\), with further keyword arguments if'
    ):
        vet.tune(TRANSFORMERS['vit'](), vet.LoRA(2), example=dict(x=images(1)))
