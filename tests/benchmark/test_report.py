"""The report: one page that needs nothing else, in which no text of a result is markup; looked at in a
browser where one is.
"""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from tests.benchmark.made import failed, result, search, suite, written
from vet.benchmark.cells import make_cell
from vet.benchmark.plots import accuracy_plot, pareto_front
from vet.benchmark.report import choose, report, write_report
from vet.benchmark.results import read_results
from vet.errors import UnknownNameError

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


class Page(HTMLParser):
    """The texts of a page by element, the tags that are open at its end, and all ids and addresses in it."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.ids, self.addresses, self.open, self.tags = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.ids += [value for name, value in attributes if name == 'id']
        self.addresses += [
            value for name, value in attributes if name in ('src', 'href', 'xlink:href', 'action', 'data')
        ]
        if tag not in ('meta', 'br'):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)


def results():
    made = [
        result(
            tuner=tuner,
            seed=seed,
            accuracy=accuracy + seed / 100 - shift,
            dataset=dataset,
            parameters=dict(tuners=1, head=300, trainable=trainable, backbone=1, total=2),
        )
        for tuner, accuracy, trainable in (('lora', 0.9, 5000), ('ssf', 0.8, 9000), ('bitfit', 0.7, 800))
        for seed in (0, 1)
        for dataset, shift in (('cifar100', 0), ('flowers102', 0.05))
    ]
    return [*made, failed(tuner='full', error='CUDA out of memory'), search({'lr': 1}, 0.99)]


def of():
    return suite(['lora', 'ssf', 'bitfit', 'full'], ['cifar100', 'flowers102'], (0, 1))


def test_the_page_is_whole_and_asks_for_nothing():
    text = report(results(), of())
    page = Page(text)
    # accuracy against four costs, curves, and classes and confusion of one run
    assert page.open == [] and page.tags.count('svg') == 2 * 4 + 6 + 2
    assert len(page.ids) == len(set(page.ids)) > 0
    assert all(address.startswith(('#', 'data:image/png;base64,')) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address[0] == '#'} <= set(page.ids)
    assert (
        set(re.findall(r'url\((#?)', text)) == {'#'}
        and "default-src 'none'" in text
        and 'script' not in page.tags
    )
    assert set(re.findall(r'https?://[^"\s]+', text)) == {
        'http://www.w3.org/2000/svg',
        'http://www.w3.org/1999/xlink',
    }


def test_what_is_on_the_page():
    texts = Page(report(results(), of())).texts
    for part in (
        '90.50 ± 0.71',
        'failed',
        'not measured',
        'CUDA out of memory',
        'cifar100.vitb16.full.seed0',
        'published',
        '92.24\u00a0[1], 92.43\u00a0[2]',
        'By class: cifar100.vitb16.lora.seed1',
        'accuracy 91.00 % on 30 test images of 3 classes.',
        'cifar100 on vitb16',
        'bitfit',
    ):
        assert any(part in text for text in texts), part
    assert not any('99.00' in text for text in texts)  # of the search
    start = texts.index('test images')
    # the hardest first
    assert texts[start + 1 : start + 10] == [
        'bee',
        '50.0 %',
        '10',
        'cow',
        '70.0 %',
        '10',
        'ant',
        '90.0 %',
        '10',
    ]
    start = texts.index('true class')
    table = [text for text in texts[start : start + 24] if text.strip()]
    # the most frequent first
    assert table[4:16] == [
        'bee',
        'ant',
        '5',
        '50.0 %',
        'cow',
        'bee',
        '3',
        '30.0 %',
        'ant',
        'cow',
        '1',
        '10.0 %',
    ]


def test_no_text_of_a_result_is_markup():
    evil = '<script>alert(1)</script>&amp;"\'$x'
    hostile = [result(tuner=evil, dataset=evil, warnings=[evil]), failed(tuner=evil, error=evil)]
    page = Page(report(hostile, suite(datasets=[])))
    assert 'script' not in page.tags and page.open == []
    assert [text for text in page.texts if text == evil], 'the text itself is shown'


@pytest.mark.slow
def test_a_run_is_chosen():
    assert choose(results())['seed'] == 1 and choose(results())['tuner'] == 'lora'
    assert 'By class: flowers102.vitb16.ssf.seed0' in report(results(), of(), 'flowers102.vitb16.ssf.seed0')
    with pytest.raises(
        UnknownNameError,
        match="unknown run 'flowers102.vitb16.ssf.seed9'.*Did you mean 'flowers102.vitb16.ssf.seed1'",
    ):
        report(results(), of(), 'flowers102.vitb16.ssf.seed9')
    with pytest.raises(UnknownNameError, match='Failed runs'):
        choose(results(), 'cifar100.vitb16.full.seed0')
    assert choose([failed()]) is None and 'By class' not in report([failed()], of())


def test_a_matrix_of_many_classes_is_left_out():
    many = result(
        data=dict(
            train=dict(images=60, classes=51, sha256='1'), test=dict(images=51, classes=51, sha256='2')
        ),
        per_class=[0.5] * 51,
        images_by_class=[1] * 51,
        confusion=[[50, 0, 1]],
        class_names=list(map(str, range(51))),
    )
    assert Page(report([many], of())).tags.count('svg') == 4 + 1 + 1


def test_pareto_front():
    points = dict(
        linear=(1, 60), same=(1, 50), bias=(5, 70), worse=(6, 65), equal=(7, 70), lora=(9, 80), full=(99, 79)
    )
    assert pareto_front(points) == ['linear', 'bias', 'lora']


def test_of_a_real_campaign(unbroken, tmp_path):
    measured = read_results(unbroken / 'results' / 'tiny')
    path = write_report(tmp_path, measured, suite(['linear', 'bias'], ['few'], (0, 1), backbones=()))
    page = Page(path.read_text())
    assert page.open == [] and page.tags.count('svg') == 4 + 2 + 2


@pytest.mark.skipif(BROWSER is None, reason='no Chromium is installed')
@pytest.mark.slow
def test_in_a_browser(tmp_path):
    """No message on the console, all plots drawn at a size, and nothing wider than the window: of a
    page with 22 datasets.
    """
    datasets = ['cifar100', 'flowers102', *(f'dataset_{number}' for number in range(20))]
    path = write_report(
        tmp_path, written(tmp_path, *results()), suite(['lora', 'ssf', 'bitfit', 'full'], datasets, (0, 1))
    )
    # the page itself forbids scripts: its copy says what the browser made of it
    measured = tmp_path / 'measured.html'
    text = re.sub(r'<meta http-equiv[^>]*>', '', path.read_text()).replace('<details>', '<details open>')
    measured.write_text(
        text.replace(
            '</body>',
            """<script>
        const drawn = [...document.querySelectorAll('svg')].filter(svg => svg.getBoundingClientRect().width > 100);
        const root = document.documentElement;
        document.title = [innerWidth, root.scrollWidth <= innerWidth, drawn.length, document.querySelectorAll('svg').length].join(' ');
        </script></body>""",
        )
    )
    assert re.search(r'<title>(.*?)</title>', browser(tmp_path, measured).stdout)[1] == '1280 true 16 16'
    assert 'CONSOLE' not in browser(tmp_path, path).stderr


def browser(folder, page):
    return subprocess.run(
        [
            BROWSER,
            '--headless',
            '--no-sandbox',
            '--disable-gpu',
            '--hide-scrollbars',
            '--enable-logging=stderr',
            '--window-size=1280,800',
            f'--user-data-dir={folder / "browser"}',
            '--dump-dom',
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize(
    'sizes', [[1000], [1000, 1000], [0], [0, 1000], [0, 0, 5], [40, 1000, 10**6]], ids=str
)
def test_every_tuner_is_named_in_the_plot_however_many_parameters_it_trains(sizes):
    cells = {
        f'tuner{number}': make_cell(
            [
                result(seed=seed, accuracy=0.5 + 0.1 * number, parameters=dict(trainable=size, head=0))
                for seed in (0, 1)
            ]
        )
        for number, size in enumerate(sizes)
    }
    assert all(f'>{name}<' in accuracy_plot(cells) for name in cells)
