"""The report of a run: what the page and predictions.csv say for each kind of target, what a screen reader
finds, and that no failure of the report ends a run.
"""

import csv
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from tests.engine.runs import small
from vet.core.objective import build_objective
from vet.report.answered import Answered, predictions_csv
from vet.report.run import run_report

SUMMARY = dict(
    work_dir='runs/<b>', selected='last epoch', parameters=dict(trainable=10, total=1000), train_seconds=1.5,
    epochs=2.0, train_images=30, seed=0, output='runs/output', accuracy=0.5, before=dict(accuracy=0.1),
)  # fmt: skip
DRAW = np.random.default_rng(0)


class Tags(HTMLParser):
    """The start tags of a page, with their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ''
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def made(kind, names, scores, targets, **options):
    objective = build_objective(dict(type=kind), names)
    paint = Image.new('RGB', (300, 200), 'red')
    return Answered(objective, scores, targets, [], lambda number: paint, **options)


def single(names=('cat', 'dog', '<i>'), images=40, **options):
    scores = DRAW.dirichlet(np.ones(len(names)), images)
    return made('SingleLabel', list(names), scores, DRAW.integers(0, len(names), images), **options)


def page_of(*parts):
    return Tags(
        run_report(SUMMARY, ['accuracy'], dict(seed=0), [dict(step=1, loss=1.0, accuracy=0.5)], parts)
    )


def assert_accessible(page):
    assert page.all('html') == [dict(lang='en')] and len(page.all('main')) == len(page.all('h1')) == 1
    assert all(image['alt'] and image['src'].startswith('data:') for image in page.all('img'))
    assert all(svg['role'] == 'img' and svg['aria-label'] for svg in page.all('svg'))
    assert all(header['scope'] in ('col', 'row') for header in page.all('th'))
    assert all(region['aria-label'] for region in page.all('div') if region.get('role') == 'region')
    assert not page.all('script') and not page.all('link') and not page.all('iframe')


def test_the_report_of_a_run(trainer):
    folder = trainer.folder.path
    page = Tags((folder / 'report.html').read_text())
    assert_accessible(page)
    for words in ('Curves', 'Confusions', 'precision', 'Calibration', 'Worst answers', 'Recipe', 'pipeline('):
        assert words in page.text
    worst = [image for image in page.all('img') if image['alt'].startswith('truth')]
    assert len(worst) == 24 and (folder / 'report.html').stat().st_size < 10**6
    assert f'{trainer.summary["accuracy"]:.4f}' in page.text
    with open(folder / 'predictions.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ['file', 'label', 'answer', 'score'] and len(rows) == len(trainer.data['test'])
    right = np.mean([row['label'] == row['answer'] for row in rows])
    assert right == pytest.approx(trainer.summary['accuracy'])
    first = trainer.predict([trainer.data['test'][0][0]])[0]
    assert rows[0]['answer'] == first['labels'][0]
    assert float(rows[0]['score']) == pytest.approx(first['scores'][0], abs=1e-4)


def test_names_of_strangers_are_text():
    page = page_of(single(train_counts=[100, 3, 50]))
    assert_accessible(page)
    assert '<i>' in page.text and 'runs/<b>' in page.text and not page.all('i') and not page.all('b')
    assert 'Classes with little data' in page.text and 'dog: 3' in page.text and 'cat: 100' not in page.text


def test_many_classes_have_no_matrix():
    page = page_of(single([f'class {number}' for number in range(300)], 500))
    assert 'answer class 7' not in page.text and 'The table shows 100 of 300 classes' in page.text
    assert 'Most frequent confusions' in page.text


def test_no_wrong_answer_and_one_image():
    scores = np.array([[1.0, 0.0]])
    page = page_of(made('SingleLabel', ['a', 'b'], scores, np.array([0])))
    assert 'No test image got a wrong answer' in page.text and not page.all('img')


def test_wrong_labels_of_a_good_model_are_suspect():
    truth = DRAW.integers(0, 5, 200)
    margins = DRAW.uniform(0, 8, (200, 1))
    margins[7::40] = 8  # the model is sure where the label is wrong
    scores = softmax(margins * np.eye(5)[truth] + DRAW.standard_normal((200, 5)), axis=1)
    labels = np.where(np.arange(200) % 40 == 7, (truth + 1) % 5, truth)
    page = page_of(made('SingleLabel', list('abcde'), scores, labels))
    assert_accessible(page)
    suspect = [image['alt'] for image in page.all('img') if image['alt'].startswith('label')]
    assert sorted(text.split(', wrong')[0] for text in suspect) == sorted(
        f'label: {"abcde"[label]}, fits better: {"abcde"[right]}'
        for label, right in zip(labels, truth) if label != right
    )  # fmt: skip
    clean = page_of(made('SingleLabel', list('abcde'), scores, truth))
    assert 'Suspect labels' not in clean.text


def test_several_labels():
    targets = DRAW.integers(0, 2, (30, 3))
    part = made('MultiLabel', ['a', 'b', 'c'], DRAW.random((30, 3)), targets)
    page = page_of(part)
    assert_accessible(page)
    assert 'recall' in page.text and 'Calibration' in page.text and len(page.all('img')) == 24
    row = predictions_csv([part]).decode().splitlines()[1].split(',')
    assert row[1] == '|'.join(np.array(['a', 'b', 'c'])[targets[0] > 0])
    assert row[2].count('|') == row[3].count('|')


def test_numbers():
    scores = DRAW.standard_normal((30, 2))
    page = page_of(made('Regression', ['road', 'sky'], scores, scores + [0.5, -1]))
    assert_accessible(page)
    assert 'mean absolute error' in page.text and 'road: answer against truth' in page.text
    assert '0.5' in page.text and 'truth: road ' in page.text


def test_several_tasks():
    parts = [single(task='pets'), single(task='plants')]
    page = page_of(*parts)
    assert 'Task pets' in page.text and 'Task plants' in page.text
    assert predictions_csv(parts).decode().splitlines()[0] == 'task,file,label,answer,score'


def test_a_run_without_test_images():
    assert 'no test images' in page_of().text


ONE = {'train.max_epochs': 1}


def test_a_failure_of_the_report_ends_no_run(tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise RuntimeError('no font')

    monkeypatch.setattr('vet.report.charts.svg', fail)
    small(tmp_path / 'run', **ONE, **{'evaluation.report': True}).train()
    assert (
        json.loads((tmp_path / 'run/summary.json').read_text())['steps']
        and not (tmp_path / 'run/report.html').exists()
    )
    assert 'no report is written, but the run is whole: RuntimeError: no font' in capsys.readouterr().err


def test_a_report_can_be_left_out(tmp_path):
    small(tmp_path / 'run', **ONE, **{'evaluation.report': False}).train()
    assert not {'report.html', 'predictions.csv'} & {path.name for path in (tmp_path / 'run').iterdir()}
