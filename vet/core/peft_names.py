"""PEFT's names of arguments, for tuners of vet that have the same argument.

core/noted_arguments.py reads the table.
`vet.tune` takes `modules_to_save`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypedDict, get_type_hints

from vet.allowed import Count, Counts, Dropout, Positive, Positives, Seed
from vet.errors import UserError

Modules = list[str] | tuple[str, ...] | set[str]


# Each argument names the tuner's argument. Editors and type checkers read these classes too.
class Targets(TypedDict, total=False):
    target_modules: Annotated[Modules, 'at']


class Ranks(Targets, total=False):
    r: Annotated[Counts, 'rank']


class OfLoRA(Ranks, total=False):
    lora_alpha: Annotated[Positives | None, 'alpha']
    lora_dropout: Annotated[Dropout, 'dropout']


class OfLoKr(Ranks, total=False):
    decompose_factor: Annotated[int, 'factor']


class OfAdaLoRA(Targets, total=False):
    init_r: Annotated[Counts, 'rank']
    target_r: Annotated[float, 'target']
    lora_alpha: Annotated[Positives | None, 'alpha']


class OfOFT(Targets, total=False):
    oft_block_size: Annotated[Count, 'block']
    num_cayley_neumann_terms: Annotated[int | None, 'terms']


class OfFourierFT(Targets, total=False):
    n_frequency: Annotated[Counts, 'count']
    scaling: Annotated[Positive, 'scale']
    random_loc_seed: Annotated[Seed, 'seed']


class OfC3A(Targets, total=False):
    block_size: Annotated[Count, 'block']


class OfRandLoRA(Targets, total=False):
    r: Annotated[Count, 'rank']
    randlora_alpha: Annotated[Positive, 'alpha']
    projection_prng_key: Annotated[Seed, 'seed']


class OfBOFT(Targets, total=False):
    boft_block_size: Annotated[Count, 'block']
    boft_n_butterfly_factor: Annotated[int, 'factors']


class OfGLoRA(Ranks, total=False):
    config_A_B: Annotated[str, 'weight']
    config_C: Annotated[str, 'prompt']
    config_D_E: Annotated[str, 'bias']


ARGUMENTS: dict[str, type] = dict(
    LoRA=OfLoRA,
    LoHa=Ranks,
    LoKr=OfLoKr,
    IA3=Targets,
    AdaLoRA=OfAdaLoRA,
    NormTune=Targets,
    HRA=Ranks,
    HiRA=Ranks,
    OFT=OfOFT,
    FourierFT=OfFourierFT,
    C3A=OfC3A,
    RandLoRA=OfRandLoRA,
    BOFT=OfBOFT,
    GLoRA=OfGLoRA,
)


def _names_of_vet(arguments: type) -> dict[str, str]:
    """{PEFT's name: the tuner's name}"""
    hints = get_type_hints(arguments, include_extras=True)
    return {theirs: hint.__metadata__[-1] for theirs, hint in hints.items()}


# {tuner: {PEFT's name: the tuner's name}}
PEFT_NAMES = {tuner: _names_of_vet(arguments) for tuner, arguments in ARGUMENTS.items()}


def in_names_of_vet(tuner: str, given: Mapping[str, object]) -> dict[str, Any]:
    """The arguments under the names of vet. UserError if an argument is given under both names."""
    names = PEFT_NAMES.get(tuner, {})
    named = dict(given)
    for theirs, ours in names.items():
        value = named.pop(theirs, None)
        if value is None:
            continue
        value = places_of(value) if theirs == 'target_modules' else value
        if ours in given and given[ours] != value:
            raise UserError(
                f'{ours} is {given[ours]!r} and {theirs} is {value!r}, two names of one argument; give one '
                'of them.'
            )
        named[ours] = value
    return named


def places_of(target_modules: object) -> list[str]:
    """The places of PEFT's target_modules, which name modules or the ends of their paths."""
    if not isinstance(target_modules, list | tuple | set):
        raise UserError(
            f'target_modules is {target_modules!r}; allowed: a list of module names. For patterns, use at=…. '
            "What PEFT calls 'all-linear' is about at='weight': Linear layers and convolutions of blocks."
        )
    return [f'*.{name}' for name in target_modules]
