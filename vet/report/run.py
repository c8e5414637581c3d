"""The report of a run: one page that shows what the model gets right and wrong, and how it was made."""

from collections.abc import Mapping, Sequence

import numpy as np
import yaml

from vet.report.answered import Answered
from vet.report.charts import Record, curves
from vet.report.kinds import KINDS
from vet.report.page import element, figures, page, table
from vet.report.thumbnail import captioned

WORST = 24  # images


def run_report(
    summary: Mapping[str, object],
    metrics: Sequence[str],
    settings: Mapping[str, object],
    records: Sequence[Record],
    answered: Sequence[Answered],
) -> str:
    """The page of a run.

    summary, settings: as in summary.json and config.json. metrics: the names of the test metrics in the
    summary. records: the lines of the log. answered: what the model said about the test images, by task.
    """
    title = f'Training report: {summary["work_dir"]}'
    parts = [
        f'<header>{element("h1", "Training report")}{element("p", str(summary["work_dir"]))}</header>',
        *_results(summary, metrics),
        *_curves(records),
    ]
    for answers in answered:
        about = [*KINDS.get(answers.objective.targets, lambda answered: [])(answers), *_worst(answers)]
        if answers.task is not None:
            about = [element('h2', f'Task {answers.task}'), *about]
        parts += [f'<section>{"".join(about)}</section>']
    if not answered:
        parts.append(element('p', 'The run has no test images.'))
    return page(title, [*parts, *_recipe(settings), *_loading(summary)])


def _results(summary: Record, metrics: Sequence[str]) -> list[str]:
    before = summary.get('before') or {}
    rows = [('result', 'before training', 'after training')]
    for name in metrics:
        rows.append((f'test {name}', f'{before[name]:.4f}' if name in before else '', f'{summary[name]:.4f}'))
    parameters = summary['parameters']
    facts = [
        ('fact', 'value'),
        ('weights', str(summary['selected'])),
        ('trained numbers', f'{parameters["trainable"]:,} of {parameters["total"]:,}'),
        ('training', f'{summary["train_seconds"]:.1f} s, {summary["epochs"]:g} epochs'),
        ('training images', f'{summary["train_images"]:,}'),
        ('seed', str(summary['seed'])),
    ]
    return [
        element('h2', 'Results'),
        *([table(rows, 'Results on the test images')] if metrics else []),
        table(facts, 'Facts of the run'),
    ]


def _curves(records: Sequence[Record]) -> list[str]:
    validated = {key.removeprefix('val_') for record in records for key in record if key.startswith('val_')}
    watched = {'accuracy', 'mae', 'pixel_accuracy'} & {key for record in records for key in record}
    drawn = [
        (curves(records, name), f'{name} over the steps') for name in ['loss', *sorted(validated | watched)]
    ]
    drawn = [(drawing, caption) for drawing, caption in drawn if drawing][:4]
    return [element('h2', 'Curves'), figures(drawn)] if drawn else []


def _worst(answered: Answered) -> list[str]:
    """The images whose answers are the most wrong."""
    wrongness = answered.objective.wrongness(answered.scores, answered.targets)
    order = np.argsort(-wrongness, kind='stable')[:WORST]
    rows = list(answered.rows())
    if not wrongness.any():
        return []
    shown = [_shown(answered, int(number), rows[number]) for number in order if wrongness[number] > 0]
    text = 'The most wrong answer first. A wrong answer with a high score may show a wrong label.'
    return [
        element('h2', 'Worst answers'),
        element('p', text, 'caption'),
        f'<div class="images">{"".join(shown)}</div>',
    ]


def _shown(answered: Answered, number: int, row: tuple[str, str, str, str]) -> str:
    file, truth, answer, score = row
    facts = [f'truth: {truth or "no class"}', f'answer: {answer or "no class"}']
    facts += [f'score: {score}'] if score else []
    shown = captioned(lambda: answered.image(number), [*facts, file[-120:]], ', '.join(facts))
    if (looked := answered.looked) is None:
        return shown
    text = f'where the network looked for {answer or "its answer"}'
    return shown + captioned(lambda: looked(number), [text], text)


def _recipe(settings: Mapping[str, object]) -> list[str]:
    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
    return [
        element('h2', 'Recipe'),
        f'<details><summary>All settings of the run</summary>{element("pre", text)}</details>',
    ]


def _loading(summary: Mapping[str, object]) -> list[str]:
    output = str(summary.get('output', ''))
    python = (
        f'from vet import pipeline\n\nclassify = pipeline(model={output!r})\nprint(classify("photo.jpg"))'
    )
    return [
        element('h2', 'Use the model'),
        element('p', 'In Python:'),
        element('pre', python),
        element('p', 'On the command line:'),
        element('pre', f'vet predict {output} photos/ --format csv --out answers.csv'),
    ]
