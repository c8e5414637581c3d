"""Writes a folder with a Gradio app around a trained model, as a Space of the Hugging Face hub expects it."""

import json
import shutil
from pathlib import Path

import yaml

import vet
from vet.core.model import ImageClassifier
from vet.errors import UserError
from vet.files import publish_folder, write_file
from vet.hub.card import base_of
from vet.hub.folders import read_folder
from vet.hub.hub import push_to_hub
from vet.hub.modelscope import is_modelscope
from vet.hub.names import find_folder

GRADIO = '6.31.0'  # the version that the app was tested with
MODEL = 'model'  # the model folder within the app's folder

APP = '''"""A page to try the model in {model}/. README.md says how the page starts."""

import json
from pathlib import Path

import gradio as gr

from vet import pipeline

HERE = Path(__file__).parent
SETTINGS = json.loads((HERE / 'app.json').read_text(encoding='utf-8'))
weights = SETTINGS['backbone']
classify = pipeline(
    model=str(HERE / '{model}'),
    backbone=str(HERE / weights) if weights else None,
    task=SETTINGS['task'],
)
objective = classify.model.for_task(SETTINGS['task']).objective


def answer(image):
    """The model's answer for the file of an image, in the form of `page.outputs`."""
    if image is None:
        raise gr.Error('Give an image.')
    try:
        found = classify(image)
    except Exception as error:
        raise gr.Error(str(error)) from error
    if SETTINGS['shows'] == 'labels':
        return dict(zip(found['labels'], found['scores']))
    if SETTINGS['shows'] == 'masks':
        return image, list(zip(found['masks'], found['labels']))
    return objective.plain(found)


shown = dict(labels=gr.Label, masks=gr.AnnotatedImage, numbers=gr.JSON)[SETTINGS['shows']]
page = gr.Interface(
    answer,
    gr.Image(type='filepath', image_mode=None, label='Image'),  # vet reads the file itself
    shown(label='Answer'),
    title=SETTINGS['title'],
    description=SETTINGS['description'],
    api_name='answer',
    flagging_mode='never',
)

if __name__ == '__main__':
    page.launch()
'''

README = """---
{front}---

# {title}

A page to try {about}. The trained part of the model is in `{model}/`. `{model}/README.md` says how the
model was made.

## Where the weights of the backbone come from

{weights}

## Run the page here

```
pip install --requirement=requirements.txt
python app.py
```

## Put the page on the hub

Make a Space with the SDK Gradio, and upload this folder: `hf upload OWNER/SPACE . . --repo-type space`.
"""


def write_demo(
    folder: str | Path,
    out: str | Path,
    task: str | None = None,
    backbone: str | Path | None = None,
    title: str | None = None,
) -> Path:
    """Writes the folder `out`: app.py, app.json, requirements.txt, README.md with the header of a Space, and
    the model folder. Returns its path.

    If the backbone's weights were read from a file, the file is copied into the folder. If a library loads
    the weights, the app lets the library load them when the app starts. README.md says which.

    task: the task that the page shows, for a model of several tasks.
    backbone: where the backbone's weights are now, if they have moved.
    title: the title of the page. None: the name of the network.
    UserError if `out` exists, for a folder of ModelScope, and for weights that cannot be read.
    """
    folder = find_folder(folder)
    out = Path(out)
    if out.exists():
        raise UserError(f'{str(out)!r} exists already; give the name of a new folder.')
    if is_modelscope(folder):
        raise UserError(
            f'{str(folder)!r} is a folder of ModelScope; a demo holds a model folder of vet. Give '
            'a folder that vet wrote.'
        )
    model: ImageClassifier = read_folder(folder, backbone)[0].for_task(task)
    identity = model.backbone.identity
    given = backbone or identity.get('checkpoint')
    file = Path(given).expanduser() if given else None
    weights = f'backbone{file.suffix}' if file else None
    settings = dict(
        title=title or str(identity.get('name', identity['type'])),
        description=f'{model.objective.about[0].upper()}{model.objective.about[1:]}, tuned with vet.',
        task=task,
        backbone=weights,
        shows=_shows(model),
    )
    front: dict[str, object] = dict(
        title=settings['title'],
        colorFrom='blue',
        colorTo='green',
        sdk='gradio',
        sdk_version=GRADIO,
        app_file='app.py',
        pinned=False,
        tags=['vet', 'vision-efficient-tuning'],
    )
    base = base_of(identity)
    if base:
        front['models'] = [base]
    readme = README.format(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True),
        title=settings['title'],
        about=model.objective.about,
        model=MODEL,
        weights=_source(model, weights, base),
    )

    def fill(temporary: Path) -> None:
        write_file(temporary / 'app.py', APP.format(model=MODEL))
        write_file(temporary / 'app.json', json.dumps(settings, indent=1, ensure_ascii=False))
        write_file(temporary / 'requirements.txt', _requirements())
        write_file(temporary / 'README.md', readme)
        if file and weights:
            shutil.copyfile(file, temporary / weights)
        push_to_hub(folder, temporary / MODEL)

    publish_folder(out, fill)
    return out


def _shows(model: ImageClassifier) -> str:
    if model.objective.dense:
        return 'masks'
    return 'labels' if 'label' in model.objective.columns else 'numbers'


def _requirements() -> str:
    return f'vision-efficient-tuning=={vet.__version__}\ngradio=={GRADIO}\n'


def _source(model: ImageClassifier, weights: str | None, base: str | None) -> str:
    """The place from which the app takes the weights of the backbone, in words."""
    identity = model.backbone.identity
    check = f'The app refuses other weights than those of sha256 `{identity["sha256"]}`.'
    if weights:
        return (
            f'The weights of {identity.get("name", identity["type"])} are the file `{weights}` in this '
            f'folder. The file is a copy of the file that the model was trained on. {check}'
        )
    if base:
        return f'When the app starts, timm downloads the weights from the hub: `{base}`. {check}'
    return f'When the app starts, {identity["type"]} gives the weights by their name. {check}'
