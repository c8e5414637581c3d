"""Sites: depths, slices, roles and the refusals of a SiteMap."""

import pytest
import torch
from torch import nn

from tests.nets import tiny
from vet.core.backbone import Backbone, Preprocessing
from vet.core.site_map import Layout
from vet.errors import NoSiteError, UnknownNameError, UserError


class Stage(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.down, self.norm, self.up = nn.Linear(6, width), nn.LayerNorm(width), nn.Linear(width, 6)

    def forward(self, x):
        return x + self.up(self.norm(self.down(x)))


class Net(nn.Module):
    """Maps to 6 channels, then three stages that are called in another order than they are written."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.middle, self.first = Stage(4), Stage(5), Stage(7)
        self.stem, self.between, self.final = nn.Conv2d(3, 6, 1), nn.LayerNorm(6), nn.LayerNorm(6)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.stem(x).flatten(2).mT
        return self.final(self.last(self.middle(self.between(self.first(x))))).mean(1)


@pytest.fixture
def sites():
    layout = Layout({'block': 'first|middle|last', 'squeeze': r'(first|middle|last)\.down'})
    return Backbone(Net(), layout, Preprocessing(size=(4, 4)), dict(type='test', name='net')).sites


def named(sites, at) -> list[str]:
    return [site.name for site in sites.find(at)]


def test_blocks_are_in_the_order_of_calls(sites):
    assert sites.blocks == ['first', 'middle', 'last']


def test_depth_counts_blocks_and_what_lies_around_them(sites):
    depths = {
        name: sites.find(name)[0].depth
        for name in ('stem', 'first', 'first.down', 'between', 'middle.norm', 'last.up', 'final')
    }
    assert depths == {
        'stem': -1,
        'first': 0,
        'first.down': 0,
        'between': 0,
        'middle.norm': 1,
        'last.up': 2,
        'final': 3,
    }


@pytest.mark.parametrize(
    'at, expected',
    [
        ('block', ['first', 'middle', 'last']),
        ('block[0]', ['first']),
        ('block[-1]', ['last']),
        ('block[1:]', ['middle', 'last']),
        ('block[-2:]', ['middle', 'last']),
        ('block[:-1]', ['first', 'middle']),
        ('block[:]', ['first', 'middle', 'last']),
        ('squeeze[-2:]', ['last.down', 'middle.down']),
        ('norm[0:2]', ['middle.norm', 'first.norm', 'between']),
        ('norm', ['last.norm', 'middle.norm', 'first.norm', 'between', 'final']),
        ('*.up', ['last.up', 'middle.up', 'first.up']),
        ('m*.up', ['middle.up']),
        ('stem', ['stem']),
        ('backbone', ['']),
        (['block[0]', 'first', 'block[-1]'], ['first', 'last']),
    ],
    ids=str,
)
def test_find_gives_the_sites_of_a_place(sites, at, expected):
    assert named(sites, at) == expected


def test_role_weight_is_every_weight_inside_blocks(sites):
    assert sorted(named(sites, 'weight')) == sorted(
        f'{b}.{leaf}' for b in sites.blocks for leaf in ('down', 'up')
    )


def test_shapes_are_per_image(sites):
    site = sites.find('middle.down')[0]
    assert (site.in_shape, site.out_shape, site.axis) == ((16, 6), (16, 5), -1)
    assert (sites.find('stem')[0].out_shape, sites.find('stem')[0].axis) == ((6, 4, 4), -3)
    assert site.weight is site.module.weight and site.called


@pytest.mark.parametrize(
    'at, error, text',
    [
        ('blok', UnknownNameError, "unknown role or module path 'blok'. Did you mean 'block'"),
        ('first.dwon', UnknownNameError, 'roles of net'),
        ('block[5]', NoSiteError, r"'block\[5\]' matches no site: net \(Net\) has 3 blocks"),
        ('block[2:1]', NoSiteError, 'matches no site'),
        ('block[a]', UserError, "cannot read the place 'block"),
        ('block[0', UserError, 'cannot read the place'),
    ],
)
def test_places_that_do_not_exist_are_errors(sites, at, error, text):
    with pytest.raises(error, match=text):
        sites.find(at)


@pytest.mark.parametrize(
    'value, first, last',
    [
        (3, 3, 3),
        ([5, 1, 0], 5, 0),
        ((0, 0, 2), 0, 2),
        ({'first*': 4}, 4, 0),
        ({'last': 1, '*': 9}, 9, 1),
        ({r'^(la|fi)': 6}, 6, 6),
    ],
    ids=str,
)
def test_at_depth(sites, value, first, last):
    one, other = sites.find(['first', 'last'])
    assert (one.at_depth(value, 'x'), other.at_depth(value, 'x')) == (first, last)


def test_pattern_that_fits_no_site_is_an_error(sites):
    with pytest.raises(
        UserError, match="width has the pattern 'lats', which fits none of the 2 sites: first, last"
    ):
        sites.find(['first', 'last'])[0].at_depth({'first': 2, 'lats': 1}, 'width')


def test_any_value_may_be_chosen_by_depth_or_pattern(sites):
    one, other = sites.find(['first', 'last'])
    assert [site.choose({'last': 0.5}, 'alpha') for site in (one, other)] == [None, 0.5]
    assert [site.choose([1.5, 2, 3], 'alpha') for site in (one, other)] == [1.5, 3] and one.choose(
        4.0, 'alpha'
    ) == 4.0


@pytest.mark.parametrize(
    'value',
    [0, -1, True, 2.0, '3', None, [1, 2], [1.5, 1, 1], {'first': -1}, {'first': 'x'}, {'(': 1}],
    ids=str,
)
def test_at_depth_refuses_by_name(sites, value):
    with pytest.raises(UserError, match='width'):
        sites.find('first')[0].at_depth(value, 'width')


def test_module_that_is_never_called_belongs_to_its_caller():
    site = tiny('torchvision-vit').sites.find('attn.qkv')[0]
    assert site.name.endswith('self_attention.in_proj') and not site.called
    assert (site.host, site.weight_name, site.bias_name) == (site.module, 'in_proj_weight', 'in_proj_bias')
    proj = tiny('torchvision-vit').sites.find('attn.proj')[0]
    assert (type(proj.host).__name__, proj.weight_name, proj.called) == (
        'MultiheadAttention',
        'out_proj.weight',
        False,
    )


def test_dry_run_leaves_the_network_as_it_was():
    backbone = tiny('resnet')
    assert not any(module._forward_hooks for module in backbone.network.modules())
    before = {name: value.clone() for name, value in backbone.network.state_dict().items()}
    net = backbone.network.train()
    Backbone(net, Layout(), Preprocessing(size=(32, 32)), dict(name='again'))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
