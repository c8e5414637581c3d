"""The notebooks as pages: their text, code, outputs and pictures, as the files hold them."""

from pathlib import Path

from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).parents[1]
NAMES = (  # in the order of reading
    'first_lora',
    'choosing_a_tuner',
    'several_labels',
    'segmentation',
    'many_models',
    'your_own_method',
    'reproducing_a_table',
)


def pages() -> dict[str, str | bytes]:
    """{page or picture: its content}"""
    exporter = MarkdownExporter(config=Config(ExtractOutputPreprocessor=dict(enabled=True)))
    made: dict[str, str | bytes] = {}
    for name in NAMES:
        resources = dict(unique_key=name)
        text, found = exporter.from_filename(str(ROOT / f'notebooks/{name}.ipynb'), resources=resources)
        note = f'`notebooks/{name}.ipynb` is this page as a notebook. The outputs are those of a real run.'
        title, _, rest = text.strip().partition('\n')
        made[f'learn/{name}.md'] = f'{title}\n\n{note}\n{rest}'
        made |= {f'learn/{picture}': content for picture, content in found['outputs'].items()}
    return made
