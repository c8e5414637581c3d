"""Several named sets of tuners on one network: switching, no set, a batch of several, and their files."""

import pytest
import timm
import torch

import vet
from tests.library.networks import images, same, state_of, trained, vit
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
