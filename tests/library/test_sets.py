"""Several named sets of tuners on one network: switching, no set, a batch of several, and their files."""

import pytest
import timm
import torch

import vet
from tests.library.networks import images, same, state_of, trained, vit
from tests.own_nets import TORCHVISION, TRANSFORMERS
from vet.errors import UnknownNameError, UserError


@pytest.fixture
def several():
    tuned = vet.tune(vit(), dict(flowers=vet.LoRA(rank=2), birds=[vet.AdaptFormer(width=4), vet.BitFit()]))
    for seed, name in enumerate(tuned.sets):
        with tuned.using(name):
            trained(tuned, steps=2 + seed)
    return tuned


def test_each_set_keeps_its_numbers(several):
    assert several.active == 'flowers'
    flowers = several(images())
    with several.using('birds'):
        birds = several(images())
    with several.using(None):
        assert torch.equal(several(images()), vit()(images()))
    assert torch.equal(several(images()), flowers) and not torch.equal(birds, flowers)
    several.use('birds')
    assert torch.equal(several(images()), birds)
    alone = trained(vet.tune(vit(), vet.AdaptFormer(width=4), vet.BitFit()), steps=3)
    assert set(several.trainable()) == set(alone.trainable())


def test_prompts_beside_rotated_tokens_come_back():
    """VPT edits two arguments of each block here: the tokens, and the angles of the rotations."""
    net = timm.create_model('eva02_tiny_patch14_224', img_size=28, depth=2, num_classes=5)
    tuned = vet.tune(net.eval(), vet.VPT(length=3))
    for parameter in tuned.trainable().values():
        torch.nn.init.normal_(parameter, std=0.3)
    scores = tuned(images(size=28))
    tuned.use(None)
    tuned.use('default')
    assert torch.equal(tuned(images(size=28)), scores)


def test_a_batch_of_several_sets(several):
    names = ['birds', 'flowers', 'birds', 'flowers']
    expected = {}
    for name in several.sets:
        with several.using(name):
            expected[name] = several(images())
    with several.using(names):
        found = several(images())
    wanted = torch.stack([expected[name][i] for i, name in enumerate(names)])
    torch.testing.assert_close(found, wanted)
    with several.using(names), pytest.raises(UserError, match='4 names for 3 images'):
        several(images(3))


def varied(net, example=None, **sets):
    """Named sets on a network in eval mode, every trained number of them random."""
    tuned = vet.tune(net.eval(), sets, example=example)
    for name in sets:
        with tuned.using(name), torch.no_grad():
            for parameter in tuned.trainable().values():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return tuned


def batch_sizes(net):
    """The batch sizes that reach the network from now on."""
    seen = []
    net.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    return seen


MIXING = dict(
    lora=lambda: [vet.LoRA(rank=2, dropout=0.5)],
    dora=lambda: [vet.LoRA(rank=2, variant='dora')],
    adapter=lambda: [vet.Adapter(width=4), vet.LoRA(rank=2)],
    head=lambda: [vet.LinearProbe()],
)


@pytest.mark.parametrize('family', ['vit', 'swin', 'resnet'])
def test_a_mixed_batch_is_one_forward(family):
    """Windows and maps too. The classifier of each set acts on the images of the set."""
    settings = dict(num_classes=5, img_size=32, patch_size=2, window_size=4, embed_dim=16)
    nets = dict(
        vit=vit,
        swin=lambda: timm.create_model(
            'swin_tiny_patch4_window7_224', **settings, depths=(1, 1), num_heads=(2, 2)
        ),
        resnet=lambda: timm.create_model('resnet10t', num_classes=5),
    )
    net = nets[family]()
    at = dict(at='weight') if family == 'resnet' else {}
    made = {name: make() for name, make in MIXING.items()}
    if family == 'resnet':
        made = dict(lora=[vet.LoRA(rank=2, **at)], adapter=[vet.Adapter(width=4)], head=[vet.LinearProbe()])
    tuned = varied(net, **made)
    names = [*made, *reversed(made), 'lora']
    x = images(len(names))
    alone = []
    for i, name in enumerate(names):
        with tuned.using(name):
            alone.append(tuned(x[i : i + 1]).detach()[0])
    before, seen = state_of(net), batch_sizes(net)
    with tuned.using(names):
        found = tuned(x)
    assert seen == [len(names)]
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-4, atol=1e-5)
    assert same(state_of(net), before) and tuned.active == next(iter(made))
    assert not torch.allclose(alone[0], alone[-2])


def test_sets_that_cannot_mix_are_one_forward_each():
    tuned = varied(vit(), lora=vet.LoRA(2), prompts=vet.VPT(length=2), biases=vet.BitFit())
    x, names, wanted = images(4), ['prompts', 'lora', 'biases', 'lora'], []
    for i, name in enumerate(names):
        with tuned.using(name):
            wanted.append(tuned(x[i : i + 1]).detach()[0])
    seen = batch_sizes(tuned.network)
    with tuned.using(names):
        torch.testing.assert_close(tuned(x), torch.stack(wanted))
    assert seen == [1, 2, 1]


def test_a_mixed_batch_of_keyword_arguments():
    torch.manual_seed(0)
    net = TRANSFORMERS['vit']()
    tuned = varied(net, one=vet.LoRA(2), two=vet.Adapter(width=4))
    x, wanted = images(3), []
    for i, name in enumerate(['two', 'one', 'two']):
        with tuned.using(name):
            wanted.append(tuned(pixel_values=x[i : i + 1]).logits[0])
    with tuned.using(['two', 'one', 'two']):
        torch.testing.assert_close(tuned(pixel_values=x).logits, torch.stack(wanted))


@pytest.mark.filterwarnings('ignore:vet knows no classifier')
def test_a_mixed_batch_of_attentions_that_take_their_tokens_by_keyword():
    torch.manual_seed(0)
    sets = {
        place: vet.Adapter(width=4, position=place, at='attn') for place in ('before', 'parallel', 'after')
    }
    tuned = varied(TRANSFORMERS['clip'](), **sets)
    x, wanted, names = images(4), [], [*sets, 'before']
    for i, name in enumerate(names):
        with tuned.using(name):
            wanted.append(tuned(x[i : i + 1]).pooler_output[0])
    seen = batch_sizes(tuned.network)
    with tuned.using(names):
        torch.testing.assert_close(tuned(x).pooler_output, torch.stack(wanted), rtol=1e-4, atol=1e-5)
    assert seen == [4]


@pytest.mark.slow
def test_a_mixed_batch_of_a_detection_network():
    detector = varied(TORCHVISION['retinanet'](), one=vet.LoRA(2, at='weight'), two=vet.BitFit())
    pictures, wanted = [torch.rand(3, 64, 64), torch.rand(3, 48, 64)], []
    for picture, name in zip(pictures, ['two', 'one']):
        with detector.using(name):
            wanted.append(detector([picture])[0])
    with detector.using(['two', 'one']):
        found = detector(pictures)
    assert [len(one['boxes']) for one in found] == [len(one['boxes']) for one in wanted]
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one['scores'], other['scores'], rtol=1e-3, atol=1e-4)


def test_a_set_is_added_and_saved(several, tmp_path):
    several.add('cars', vet.LoRA(rank=1))
    assert several.active == 'cars'
    scores = trained(several)(images())
    several.save(tmp_path / 'cars')
    several.use('flowers')
    several.save(tmp_path / 'flowers')
    assert torch.equal(vet.load(tmp_path / 'cars', vit())(images()), scores)
    assert torch.equal(vet.load(tmp_path / 'flowers', vit())(images()), several(images()))


def test_detach_takes_all_sets_off(several):
    several.use('birds')
    assert same(state_of(several.detach()), vit().state_dict())


def test_mistakes_with_sets(several):
    with pytest.raises(UnknownNameError, match="set of tuners 'flower'. Did you mean 'flowers'"):
        several.use('flower')
    with pytest.raises(UserError, match="a set 'birds' already"):
        several.add('birds', vet.LoRA(2))
    with pytest.raises(UserError, match='allowed: a text without dots'):
        several.add('a.b', vet.LoRA(2))
    several.use('flowers')
    several.merge()
    with pytest.raises(UserError, match='merged'):
        several.use('birds')


def test_several_folders_open_as_sets(several, tmp_path):
    several.add('cars', vet.Partial(names=['blocks.0.norm1']))
    trained(several)
    scores = {}
    for name in several.sets:
        with several.using(name):
            several.save(tmp_path / name)
            scores[name] = several(images())
    net = vit()
    tuned = vet.load({name: tmp_path / name for name in scores}, net)
    assert tuned.active == 'flowers' and list(tuned.sets) == list(scores)
    for name in scores:
        with tuned.using(name):
            assert torch.equal(tuned(images()), scores[name])
            tuned.save(tmp_path / f'{name} again')
    assert torch.equal(vet.load(tmp_path / 'cars again', vit())(images()), scores['cars'])
    assert same(state_of(tuned.detach()), vit().state_dict())


def test_sets_with_other_whole_parameters_open_together(tmp_path):
    scores = {}
    for name, train in (('one', 'norm.*'), ('two', ())):
        tuned = trained(vet.tune(vit(), vet.LoRA(2), train=train))
        tuned.save(tmp_path / name)
        scores[name] = tuned(images())
    for names in (['one', 'two'], ['two', 'one']):
        tuned = vet.load({name: tmp_path / name for name in names}, vit())
        for name in names:
            with tuned.using(name):
                assert torch.equal(tuned(images()), scores[name])


def test_a_wrong_folder_among_several_leaves_the_network_as_it_was(several, tmp_path):
    several.save(tmp_path / 'flowers')
    net = vit()
    folders = dict(flowers=tmp_path / 'flowers', birds=tmp_path / 'nosuch')
    with pytest.raises(UserError, match='nosuch'):
        vet.load(folders, net)
    with pytest.raises(UserError, match='give one or more'):
        vet.load({}, net)
    with pytest.raises(UserError, match='text without dots'):
        vet.load({'a.b': tmp_path / 'flowers'}, net)
    assert same(state_of(net), vit().state_dict()) and all(each.requires_grad for each in net.parameters())
    vet.load(folders['flowers'], net)
