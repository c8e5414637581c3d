"""The parts of a report that depend on the kind of target."""

from collections.abc import Callable
from functools import partial

import numpy as np

from vet.metrics.calibration import calibration_error
from vet.report.answered import Answered
from vet.report.charts import calibration, truth_and_answer
from vet.report.page import element, figures, items, table
from vet.report.suspects import judged_by
from vet.report.thumbnail import captioned

LISTED = 100  # the most classes in a table
CONFUSED = 20  # the most confusions in a list
MATRIX = 25  # the most classes of a confusion matrix
FEW = 20  # training images: a class with fewer has little data
DRAWN = 6  # the most numbers that are drawn
SURE = 0.9  # of another class, so that the mistakes of a weak model are not called wrong labels
SUSPECTS = 24  # the most suspect labels that are shown


def one_class(answered: Answered) -> list[str]:
    given = answered.decided
    truth = answered.targets
    sure = answered.scores[np.arange(len(given)), given]
    return [
        *_confusions(answered, truth, given),
        *_classes(answered),
        *_few(answered),
        *_suspects(answered),
        *_calibration(sure, given == truth),
    ]


def sets_of_classes(answered: Answered) -> list[str]:
    return [
        *_classes(answered),
        *_few(answered),
        *_calibration(answered.scores.ravel(), answered.targets.ravel() > 0),
    ]


def numbers(answered: Answered) -> list[str]:
    errors = answered.scores - answered.targets
    rows: list[tuple[str, ...]] = [
        ('number', 'mean absolute error', 'root mean square error', 'mean error', 'images')
    ]
    for name, error in zip(answered.objective.names, errors.T):
        values = (np.abs(error).mean(), (error**2).mean() ** 0.5, error.mean())
        rows.append((name, *(f'{value:.4g}' for value in values), f'{len(error):,}'))
    drawn = [
        (truth_and_answer(name, truth, answer), f'{name}: answer against truth')
        for name, truth, answer in zip(
            answered.objective.names[:DRAWN], answered.targets.T, answered.scores.T
        )
    ]
    return [element('h2', 'Errors'), table(rows, 'Errors of each number'), figures(drawn)]


def masks(answered: Answered) -> list[str]:
    """Intersection over union, and the pixels, of each class."""
    said_K, right_K = np.moveaxis(answered.scores.sum(0), -1, 0)
    true_K = answered.targets.sum(0)
    rows = [('class', 'IoU', 'precision', 'recall', 'pixels of the masks')]
    union_K = said_K + true_K - right_K
    for k in np.argsort(right_K / np.maximum(1, union_K), kind='stable')[:LISTED]:
        shares = (100 * right_K[k] / max(1, whole[k]) for whole in (union_K, said_K, true_K))
        cells = (f'{share:.1f} %' for share in shares)
        rows.append((answered.objective.names[k], *cells, f'{int(true_K[k]):,}'))
    text = f'The lowest IoU first.{_cut(len(true_K))}'
    return [
        element('h2', 'Classes'),
        element('p', text, 'caption'),
        table(rows, 'Intersection over union, precision and recall of each class'),
    ]


KINDS: dict[str, Callable[[Answered], list[str]]] = {
    'one class': one_class,
    'ordered classes': one_class,
    'a set of classes': sets_of_classes,
    'numbers': numbers,
    'a mask': masks,
}


def _confusions(answered: Answered, truth: np.ndarray, given: np.ndarray) -> list[str]:
    """The confusion matrix. For many classes: the most frequent confusions."""
    from sklearn.metrics import confusion_matrix

    names = answered.objective.names
    matrix = confusion_matrix(truth, given, labels=range(len(names)))
    totals = np.maximum(matrix.sum(1), 1)
    parts = [element('h2', 'Confusions')]
    if len(names) <= MATRIX:
        rows = [('true class', *(f'answer {name}' for name in names))]
        for name, counts in zip(names, matrix):
            rows.append((name, *(f'{count:,}' if count else '·' for count in counts)))
        parts += [element('p', 'A row for each true class, a column for each answer.', 'caption')]
        parts += [table(rows, 'Confusion matrix')]
    wrong = matrix * (1 - np.eye(len(names), dtype=int))
    often = [divmod(int(place), len(names)) for place in np.argsort(-wrong, axis=None)[:CONFUSED]]
    rows = [('true class', 'answer', 'times', 'of the class')]
    for i, j in often:
        if wrong[i, j]:
            rows.append((names[i], names[j], f'{wrong[i, j]:,}', f'{100 * wrong[i, j] / totals[i]:.1f} %'))
    if len(rows) == 1:
        return [*parts, element('p', 'No test image got a wrong answer.')]
    return [*parts, '<h3>Most frequent confusions</h3>', table(rows, 'Most frequent confusions')]


def _classes(answered: Answered) -> list[str]:
    """Precision, recall and support of each class, the lowest F1 first."""
    from sklearn.metrics import precision_recall_fscore_support

    names = answered.objective.names
    precision, recall, f1, support = precision_recall_fscore_support(
        answered.targets, answered.decided, labels=range(len(names)), zero_division=0
    )
    rows = [('class', 'precision', 'recall', 'F1', 'test images', 'training images')]
    for k in np.argsort(f1, kind='stable')[:LISTED]:
        shares = (f'{100 * value[k]:.1f} %' for value in (precision, recall, f1))
        trained = f'{answered.train_counts[k]:,}' if len(answered.train_counts) else 'not known'
        rows.append((names[k], *shares, f'{int(support[k]):,}', trained))
    text = f'The lowest F1 first.{_cut(len(names))}'
    return [
        element('h2', 'Classes'),
        element('p', text, 'caption'),
        table(rows, 'Precision, recall and support of each class'),
    ]


def _cut(classes: int) -> str:
    return f' The table shows {LISTED} of {classes:,} classes.' if classes > LISTED else ''


def _few(answered: Answered) -> list[str]:
    """The classes with little data."""
    named = zip(answered.train_counts, answered.objective.names)
    few = sorted((int(count), name) for count, name in named if count < FEW)
    if not few:
        return []
    more = f' The list shows {LISTED} of {len(few):,} such classes.' if len(few) > LISTED else ''
    return [
        element('h2', 'Classes with little data'),
        element('p', f'These classes have fewer than {FEW} training images.{more}'),
        items(f'{name}: {count:,}' for count, name in few[:LISTED]),
    ]


def _suspects(answered: Answered) -> list[str]:
    """The test images whose labels are probably wrong."""
    names = answered.objective.names
    judged = judged_by(np.log(answered.scores + 1e-12), answered.targets)
    shown = []
    for number in judged.suspects(answered.targets, SURE)[:SUSPECTS]:
        label = names[answered.targets[number]]
        better = names[judged.best_N[number]]
        chance = f'wrong with probability {judged.wrong_N[number]:.2f}'
        lines = [f'label: {label}', f'fits better: {better}', chance, answered.file(number)[-120:]]
        shown.append(captioned(partial(answered.image, number), lines, ', '.join(lines[:3])))
    if not shown:
        return []
    text = 'These labels of test images are probably wrong. Look at them.'
    return [
        element('h2', 'Suspect labels'),
        element('p', text, 'caption'),
        f'<div class="images">{"".join(shown)}</div>',
    ]


def _calibration(says: np.ndarray, is_so: np.ndarray) -> list[str]:
    """The diagram, and the expected calibration error."""
    error = calibration_error(says, is_so)
    caption = (
        f'Calibration. On the dotted line, a score of 0.8 is right 8 times of 10. Expected calibration '
        f'error: {100 * error:.1f} %'
    )
    return [element('h2', 'Calibration'), figures([(calibration(says, is_so), caption)])]
