"""The short forms of model.backbone: lora_length=10 stands for an entry of model.tuners."""

from typing import Any

from vet.allowed import fits
from vet.errors import UnknownNameError, UserError, shown
from vet.registry import TUNERS


def short_forms() -> dict[str, tuple[str, ...]]:
    """{short form in model.backbone: (the tuner, its argument, other names of the argument)}."""
    keys = {name: _length_key(name) for name in TUNERS.names()}
    return {key[0]: (name, *key[1:]) for name, key in keys.items() if key}


def _length_key(name: str) -> Any:
    """The `length_key` of a tuner. A tuner of vet is not imported for it, because torch imports slowly."""
    listed = TUNERS.listed(name)
    return listed.constants.get('length_key') if listed else getattr(TUNERS.find(name), 'length_key', None)


def expand_short_forms(model: dict[str, Any], beside: str = 'change') -> None:
    """model.backbone.lora_length = 10 becomes the entry dict(type='LoRA', rank=10) of model.tuners.

    0 removes the entry.

    beside: how to treat model.tuners and a short form together. 'change': the short form changes the entry of
        its tuner, because the short form was given last. 'refuse contradictions': UserError if the entry has
        another value, because both were given at once. 'refuse both': UserError if both are there, for a
        file, because a `_base_` may have given the short form or the entry.
    """
    for task, section in (model['tasks'] if isinstance(model.get('tasks'), dict) else {}).items():
        task_backbone = section.get('backbone') if isinstance(section, dict) else None
        for key in task_backbone if isinstance(task_backbone, dict) else ():
            if key in short_forms():
                raise UserError(
                    f'model.tasks.{task}.backbone has {key}, but the tuners are the same for all tasks; give '
                    f'{key} in model.backbone.'
                )
    backbone = model.get('backbone')
    if not isinstance(backbone, dict):
        return
    for key in [key for key in backbone if str(key).endswith('_length')]:
        short = short_forms()
        if key not in short:
            raise UnknownNameError('short form in model.backbone', key, short)
        name, argument, *aliases = short[key]
        value = backbone.pop(key)
        tuners = model.get('tuners') or []
        if value is None or not fits(tuners, list[dict[str, Any]]):
            continue  # no value; or the tuners are wrong, and `read_settings` raises the error
        is_nothing = value == 0 or isinstance(value, (list, tuple)) and len(value) > 0 and not any(value)
        entry = next((tuner for tuner in tuners if tuner.get('type') == name), None)
        differs = (
            entry is not None and entry.get(argument, entry.get(aliases[0]) if aliases else None) != value
        )
        if beside == 'refuse both' and tuners and not is_nothing or beside != 'change' and differs:
            raise UserError(
                f'model.tuners is {shown(tuners)}, and model.backbone.{key} is {shown(value)}, which is '
                f'short for dict(type={name!r}, {argument}={shown(value)}) there. Give one of them: write '
                f'the entry in model.tuners and set {key}=None, or leave model.tuners out.'
            )
        if is_nothing:
            tuners = [tuner for tuner in tuners if tuner is not entry]
        elif entry is not None:
            others = {key: entry[key] for key in entry if key not in aliases}
            tuners = [{**others, argument: value} if tuner is entry else tuner for tuner in tuners]
        else:
            tuners = [*tuners, {'type': name, argument: value}]
        model['tuners'] = tuners
