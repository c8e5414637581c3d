"""PEFT's methods in vet's terms: the tuner of each method, and PEFT's names and shapes of its deltas'
tensors.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from vet.core.scales import Scale, ScaleInput
from vet.core.site import Site
from vet.core.tuner import Tuner
from vet.errors import UserError
from vet.files import JsonObject
from vet.hub.peft_lora import LORA
from vet.hub.peft_terms import Config, Delta, Deltas, Method, Tensors, paths_pattern
from vet.patterns import fits
from vet.registry import TUNERS


def _build_loha(config: Config, paths: list[str], rank: int, alpha: float) -> Tuner:
    return TUNERS.build(dict(type='LoHa', at=paths, rank=rank, alpha=alpha))


def _loha(delta: Delta, weight: torch.Tensor) -> Tensors:
    return {f'hada_{name}': delta.get_parameter(name) for name in ('w1_a', 'w1_b', 'w2_a', 'w2_b')}


def _build_lokr(config: Config, paths: list[str], rank: int, alpha: float) -> Tuner:
    return TUNERS.build(
        dict(type='LoKr', at=paths, rank=rank, alpha=alpha, factor=config.get('decompose_factor', -1))
    )


def _lokr(delta: Delta, weight: torch.Tensor) -> Tensors:
    if delta.w2_b is None:
        return dict(lokr_w1=delta.w1, lokr_w2=delta.w2_a.view(len(delta.w2_a), -1, *weight.shape[2:]))
    return dict(lokr_w1=delta.w1, lokr_w2_a=delta.w2_a, lokr_w2_b=delta.w2_b)


def _lokr_rank(delta: Delta, weight: torch.Tensor) -> int:
    """The rank of w2. If w2 (o2, i2 kH kW) is no product: the least rank at which PEFT makes no product."""
    return (
        len(delta.w2_b)
        if delta.w2_b is not None
        else math.ceil(max(len(delta.w2_a), weight.shape[1] // delta.w1.shape[1]) / 2)
    )


def _lokr_config(deltas: Deltas, tuners: list[Tuner]) -> JsonObject:
    factors: set[int] = {vars(tuner)['factor'] for tuner in tuners if 'factor' in vars(tuner)}
    if len(factors) > 1:
        raise UserError(f'the LoKr tuners have the factors {sorted(factors)}; PEFT has one decompose_factor.')
    return dict(decompose_factor=factors.pop())


class PeftIA3(Tuner):
    """l * (W x + b) at each module, but W (l * x) + b at the modules of `inputs`.

    vet's IA3 chooses between the two by the modules' names.
    """

    def __init__(self, at: list[str], inputs: list[str]):
        super().__init__(at)
        self.inputs = inputs

    def tune(self, site: Site) -> None:
        if site.name in self.inputs:
            self.reweight(site, ScaleInput(site.weight.shape, getattr(site.module, 'groups', 1)))
        else:
            self.reweight(site, Scale(len(site.weight)))


def _build_ia3(config: Config, paths: list[str], rank: int, alpha: float) -> Tuner:
    inputs = config.get('feedforward_modules') or []
    return PeftIA3(
        paths,
        [
            path
            for path in paths
            if (fits(inputs, path) if isinstance(inputs, str) else path.endswith(tuple(inputs)))
        ],
    )


def _ia3(delta: Delta, weight: torch.Tensor) -> Tensors:
    gamma = delta.gamma
    ones = (1,) * (weight.dim() - 2)
    if isinstance(delta, ScaleInput):
        return dict(ia3_l=gamma.view(1, -1, *ones))
    if len(gamma) < len(weight):  # vet's IA3 scales only the keys and values of a fused projection
        gamma = torch.cat([gamma.new_ones(len(weight) - len(gamma)), gamma])
    return dict(ia3_l=gamma.view(1, -1, *ones) if ones else gamma.view(-1, 1))


def _ia3_config(deltas: Deltas, tuners: list[Tuner]) -> JsonObject:
    inputs = [path for path, delta in deltas.items() if isinstance(delta, ScaleInput)]
    return dict(feedforward_modules=paths_pattern(inputs) if inputs else [])


def _builder(tuner: str, **names: tuple[str, Any]) -> Callable[[Config, list[str], int, float], Tuner]:
    """Builds a tuner whose arguments are settings of PEFT. names: {argument: (setting, PEFT's default)}."""

    def build(config: Config, paths: list[str], rank: int, alpha: float) -> Tuner:
        given = {name: config.get(setting, usual) for name, (setting, usual) in names.items()}
        return TUNERS.build(dict(type=tuner, at=paths, **given))

    return build


def _build_oft(config: Config, paths: list[str], rank: int, alpha: float) -> Tuner:
    if config.get('r'):
        raise UserError('r is a number of blocks; vet reads only adapters of OFT that give oft_block_size.')
    is_series = config.get('use_cayley_neumann', True)
    terms = config.get('num_cayley_neumann_terms', 5) if is_series else None
    return TUNERS.build(dict(type='OFT', at=paths, block=config.get('oft_block_size', 32), terms=terms))


def _oft_config(deltas: Deltas, tuners: list[Any]) -> JsonObject:
    terms = _one('terms', {delta.terms for delta in deltas.values()})
    series = dict(num_cayley_neumann_terms=terms) if terms else {}
    block = _one('blocks', {delta.block for delta in deltas.values()})
    return dict(r=0, oft_block_size=block, use_cayley_neumann=terms is not None, **series)


def _fourierft_config(deltas: Deltas, tuners: list[Any]) -> JsonObject:
    return dict(
        n_frequency=_one('counts', {len(delta.values) for delta in deltas.values()}),
        scaling=_one('scales', {delta.scale for delta in deltas.values()}),
        random_loc_seed=_one('seeds', {delta.seed for delta in deltas.values()}),
    )


def _build_boft(config: Config, paths: list[str], rank: int, alpha: float) -> Tuner:
    if config.get('boft_block_num'):
        raise UserError('boft_block_num is given; vet reads only adapters of BOFT that give boft_block_size.')
    return _builder('BOFT', block=('boft_block_size', 4), factors=('boft_n_butterfly_factor', 1))(
        config, paths, rank, alpha
    )


def _boft_config(deltas: Deltas, tuners: list[Any]) -> JsonObject:
    shapes = {(len(delta.R), delta.R.shape[-1]) for delta in deltas.values()}
    factors, block = _one('factors and blocks', shapes)
    return dict(boft_block_size=block, boft_block_num=0, boft_n_butterfly_factor=factors)


def _randlora_config(deltas: Deltas, tuners: list[Any]) -> JsonObject:
    rank, alpha, seed = _one(
        'ranks, alphas and seeds',
        {(len(d.bases.A), d.scale * len(d.bases.A), d.bases.seed) for d in deltas.values()},
    )
    _one('bases', {id(delta.bases) for delta in deltas.values()})
    return dict(r=rank, randlora_alpha=alpha, projection_prng_key=seed, save_projection=False)


def _glora(delta: Delta, weight: torch.Tensor) -> Tensors:
    """PEFT's vector of a bias is (out,), and its constant is (1,)."""
    return {
        f'glora_{name}': value.view(-1)
        if name in ('A.X', 'B.X') and value.numel() == 1 or name[0] in 'DE'
        else value
        for name, value in delta.named_parameters()
    }


def _glora_config(deltas: Deltas, tuners: list[Any]) -> JsonObject:
    weight, prompt, bias = _one('forms', {tuner.forms for tuner in tuners if type(tuner).__name__ == 'GLoRA'})
    ranks = {term.Xd.shape[1] for d in deltas.values() for term in d.children() if term.form == 'lora'}
    return dict(r=_one('ranks', ranks or {8}), config_A_B=weight, config_C=prompt, config_D_E=bias)


def _one(name: str, values: set[Any]) -> Any:
    """The one value of all sites. UserError if sites differ."""
    if len(values) > 1:
        raise UserError(f'the sites have the {name} {sorted(values)}; a folder of PEFT holds one for all.')
    return values.pop()


def build_thaw(config: Config, paths: list[str], rank: int = 0, alpha: float = 0) -> Tuner:
    """The modules of these paths train whole."""
    return TUNERS.build(dict(type='Partial', names=[f'{path}.' for path in paths]))


METHODS = dict(
    LORA=LORA,
    LOHA=Method(_build_loha, _loha, lambda delta, weight: len(delta.w1_b)),
    LOKR=Method(_build_lokr, _lokr, _lokr_rank, config=_lokr_config, reads=('decompose_factor',)),
    IA3=Method(_build_ia3, _ia3, config=_ia3_config, reads=('feedforward_modules',)),
    HRA=Method(
        _builder('HRA', rank=('r', 8)),
        lambda delta, weight: dict(hra_u=delta.u),
        config=lambda deltas, _: dict(r=_one('ranks', {delta.u.shape[1] for delta in deltas.values()})),
        reads=('r',),
        takes_convolutions=False,
    ),
    HIRA=Method(
        _builder('HiRA', rank=('r', 32)),
        lambda delta, weight: dict(hira_A=delta.A, hira_B=delta.B),
        config=lambda deltas, _: dict(r=_one('ranks', {len(delta.A) for delta in deltas.values()})),
        reads=('r', 'hira_dropout'),
        takes_convolutions=False,
    ),
    OFT=Method(
        _build_oft,
        lambda delta, weight: {'oft_R.weight': delta.q},
        config=_oft_config,
        reads=('r', 'oft_block_size', 'use_cayley_neumann', 'num_cayley_neumann_terms', 'eps'),
        takes_convolutions=False,
    ),
    FOURIERFT=Method(
        _builder(
            'FourierFT', count=('n_frequency', 1000), scale=('scaling', 150.0), seed=('random_loc_seed', 777)
        ),
        lambda delta, weight: dict(fourierft_spectrum=delta.values),
        config=_fourierft_config,
        reads=('n_frequency', 'scaling', 'random_loc_seed'),
        takes_convolutions=False,
    ),
    C3A=Method(
        _builder('C3A', block=('block_size', 256)),
        lambda delta, weight: dict(c3a_kernel=delta.w),
        config=lambda deltas, _: dict(
            block_size=_one('blocks', {delta.w.shape[2] for delta in deltas.values()})
        ),
        reads=('block_size',),
        takes_convolutions=False,
    ),
    RANDLORA=Method(
        _builder(
            'RandLoRA', rank=('r', 32), alpha=('randlora_alpha', 640.0), seed=('projection_prng_key', 0)
        ),
        lambda delta, weight: dict(randlora_lambda=delta.lambda_, randlora_gamma=delta.gamma),
        config=_randlora_config,
        reads=('r', 'randlora_alpha', 'projection_prng_key', 'save_projection', 'randlora_dropout'),
        takes_convolutions=False,
        fixed=lambda delta: dict(randlora_A=delta.bases.A[:, None], randlora_B=delta.bases.B),
    ),
    BOFT=Method(
        _build_boft,
        lambda delta, weight: dict(boft_R=delta.R, boft_s=delta.s),
        config=_boft_config,
        reads=('boft_block_size', 'boft_block_num', 'boft_n_butterfly_factor', 'boft_dropout'),
        takes_convolutions=False,
    ),
    GLORA=Method(
        _builder(
            'GLoRA',
            rank=('r', 8),
            weight=('config_A_B', 'lora'),
            prompt=('config_C', 'lora'),
            bias=('config_D_E', 'constant'),
        ),
        _glora,
        config=_glora_config,
        reads=('r', 'config_A_B', 'config_C', 'config_D_E'),
        takes_convolutions=False,
        fixed=lambda delta: dict(zeros=torch.zeros(())),
    ),
    LN_TUNING=Method(build_thaw, lambda delta, weight: {}),
)
TUNED_BY = dict(
    LoRA='LORA',
    LoHa='LOHA',
    LoKr='LOKR',
    IA3='IA3',
    PeftIA3='IA3',
    HRA='HRA',
    HiRA='HIRA',
    OFT='OFT',
    FourierFT='FOURIERFT',
    C3A='C3A',
    RandLoRA='RANDLORA',
    BOFT='BOFT',
    GLoRA='GLORA',
    AdaLoRA='LORA',
)  # vet's tuner: PEFT's method
