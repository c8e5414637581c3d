"""PEFT's names of arguments, for tuners of vet that have the same argument. core/given.py reads the table.

`vet.tune` takes `modules_to_save`.
"""

from collections.abc import Mapping
from typing import Any

from vet.errors import UserError

# {tuner: {PEFT's name: the tuner's name}}
PEFT_NAMES: dict[str, dict[str, str]] = dict(
    LoRA=dict(r='rank', lora_alpha='alpha', lora_dropout='dropout', target_modules='at'),
    LoHa=dict(r='rank', target_modules='at'),
    LoKr=dict(r='rank', decompose_factor='factor', target_modules='at'),
    IA3=dict(target_modules='at'),
    AdaLoRA=dict(init_r='rank', target_r='target', lora_alpha='alpha', target_modules='at'),
    NormTune=dict(target_modules='at'),
    HRA=dict(r='rank', target_modules='at'),
    HiRA=dict(r='rank', target_modules='at'),
    OFT=dict(oft_block_size='block', num_cayley_neumann_terms='terms', target_modules='at'),
    FourierFT=dict(n_frequency='count', scaling='scale', random_loc_seed='seed', target_modules='at'),
    C3A=dict(block_size='block', target_modules='at'),
    RandLoRA=dict(r='rank', randlora_alpha='alpha', projection_prng_key='seed', target_modules='at'),
    BOFT=dict(boft_block_size='block', boft_n_butterfly_factor='factors', target_modules='at'),
    GLoRA=dict(r='rank', config_A_B='weight', config_C='prompt', config_D_E='bias', target_modules='at'),
)


def in_own_names(tuner: str, given: Mapping[str, object]) -> dict[str, Any]:
    """The arguments under the names of vet. UserError if an argument is given under both names."""
    names, own = PEFT_NAMES.get(tuner, {}), dict(given)
    for theirs, ours in names.items():
        value = own.pop(theirs, None)
        if value is None:
            continue
        value = places_of(value) if theirs == 'target_modules' else value
        if ours in given and given[ours] != value:
            raise UserError(
                f'{ours} is {given[ours]!r} and {theirs} is {value!r}, two names of one argument; give one '
                'of them.'
            )
        own[ours] = value
    return own


def places_of(target_modules: object) -> list[str]:
    """The places of PEFT's target_modules, which name modules or the ends of their paths."""
    if not isinstance(target_modules, list | tuple | set):
        raise UserError(
            f'target_modules is {target_modules!r}; allowed: a list of module names. For patterns, use at=…. '
            "What PEFT calls 'all-linear' is about at='weight': Linear layers and convolutions of blocks."
        )
    return [f'*.{name}' for name in target_modules]
