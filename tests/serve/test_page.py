"""The page at /, in headless Chromium: a real photo is uploaded, answered, explained; by mouse, key and paste."""

import re
import shutil
import time
from pathlib import Path

import pytest

from tests.serve.folders import encoded, photo
from tests.serve.running import running
from vet import pipeline

PAGE = Path(__file__).parents[2] / 'vet/serve/page'


def test_the_page_is_static_and_loads_nothing_from_other_hosts(client):
    page = client.get('/').text
    assert page == (PAGE / 'index.html').read_text()
    for path in re.findall(r'(?:src|href)="(page/[^"]+)"', page):
        assert client.get(f'/{path}').content == (PAGE / path.removeprefix('page/')).read_bytes()
    for file in PAGE.iterdir():
        assert re.findall(r'https?://(?!www\.w3\.org)[^\s"\'`]+', file.read_text()) == []


def test_each_control_of_the_page_has_a_name():
    page = (PAGE / 'index.html').read_text()
    for identity in re.findall(r'<(?:select|input) id="([\w-]+)"', page):
        assert f'for="{identity}"' in page or re.search(rf'<label[^>]*>[^<]+<input id="{identity}"', page)
    assert page.count('aria-live="polite"') >= 2 and '<html lang="en">' in page


@pytest.mark.parametrize('path', ['/docs', '/openapi.json'])
def test_the_docs_need_no_other_host(client, path):
    text = client.get(path).text
    assert 'https://cdn' not in text
    for file in re.findall(r'(?:src|href)="([^"]+)"', text):
        assert client.get(f'/{file}').status_code == 200


# In a browser -----------------------------------------------------------------------------------------------


@pytest.fixture
def browser():
    if not (shutil.which('chromium') and shutil.which('chromedriver')):
        pytest.skip('Chromium is not installed')
    webdriver = pytest.importorskip('selenium.webdriver')
    options = webdriver.ChromeOptions()
    for argument in ('--headless=new', '--no-sandbox', '--disable-gpu', '--window-size=1000,1400'):
        options.add_argument(argument)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    service = webdriver.ChromeService(shutil.which('chromedriver'))
    browser = webdriver.Chrome(options, service)
    yield browser
    browser.quit()


def found(browser, css, count=1, seconds=30):
    """The elements of a selector, as soon as there are so many."""
    end = time.monotonic() + seconds
    while True:
        elements = browser.find_elements('css selector', css)
        if len(elements) >= count:
            return elements
        assert time.monotonic() < end, (css, len(elements), browser.find_element('tag name', 'main').text)
        time.sleep(0.05)


def done(browser):
    end = time.monotonic() + 300
    while 'done' not in browser.find_element('id', 'status').text:
        assert time.monotonic() < end, browser.find_element('id', 'status').text
        time.sleep(0.05)


def column(browser, cell):
    return [each.text.strip() for each in browser.find_elements('css selector', f'tbody {cell}')]


@pytest.mark.slow
def test_a_photo_is_uploaded_answered_and_explained(browser, folders, tmp_path):
    picture = tmp_path / "a photo'.jpg"
    picture.write_bytes(encoded(photo(3, (320, 240)), 'JPEG'))
    expected = pipeline(str(folders['one']), device='cpu')(str(picture))
    with running(folders['one'].parent) as client:
        browser.get(str(client.base_url))
        found(browser, '#model option', 12)
        assert not browser.find_element('id', 'token').is_displayed()
        browser.find_element('css selector', '#model option[value=one]').click()
        browser.find_element('id', 'files').send_keys(str(picture))
        done(browser)
        assert column(browser, 'th') == expected['labels']
        assert [float(score) for score in column(browser, 'td')] == pytest.approx(
            expected['scores'], abs=1e-4
        )
        assert ' ms in the server' in browser.find_element('css selector', '.time').text
        curl = browser.find_element('css selector', 'pre').get_attribute('textContent')
        assert "-F 'model=one'" in curl and curl.endswith('/v1/predict') and r"photo'\''.jpg" in curl
        browser.find_element('css selector', '.look').click()
        [heat] = found(browser, '.looked img')
        assert heat.get_attribute('alt').startswith('Heat over the image')
        for width in (360, 1000):
            browser.set_window_size(width, 1200)
            assert browser.execute_script('return document.documentElement.scrollWidth <= innerWidth')
        # all models, by the keyboard alone
        browser.find_element('id', 'model').send_keys('Compare')
        found(browser, '.answer', 12, 300)
        done(browser)
        texts = browser.find_element('id', 'results').text
        assert 'a vector of 8 numbers' in texts and browser.find_elements('css selector', '.wrong') == []
        assert 'tasks: left' in texts and 'tasks: right' in texts
        assert min(cell.size['width'] for cell in found(browser, 'tbody th')) >= 100  # no word is broken
        assert len(browser.find_elements('css selector', 'img.mask')) >= 1
        # a paste
        browser.execute_script(
            """const data = new DataTransfer();
            data.items.add(new File([new Uint8Array([1, 2])], 'x.png', {type: 'image/png'}));
            document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data}));"""
        )
        found(browser, 'p.wrong', 2)
        refused = [entry for entry in browser.get_log('browser') if 'Content Security' in entry['message']]
        assert refused == []


@pytest.mark.slow
def test_a_token_and_dark_mode(browser, folders):
    with running(folders['one'], token='geheim') as client:
        browser.execute_cdp_cmd(
            'Emulation.setEmulatedMedia', dict(features=[dict(name='prefers-color-scheme', value='dark')])
        )
        browser.get(str(client.base_url))
        found(browser, '#token-field:not([hidden])')
        color = browser.find_element('id', 'status').value_of_css_property('color')
        assert color == 'rgba(255, 154, 154, 1)'  # --wrong
        browser.find_element('id', 'token').send_keys('geheim\n')
        found(browser, '#model option')
        color = browser.execute_script('return getComputedStyle(document.body).backgroundColor')
        assert color == 'rgb(22, 25, 29)'


@pytest.mark.slow
def test_the_docs_are_shown(browser, client):
    browser.get(f'{client.base_url}/docs')
    assert 'predict' in found(browser, '.opblock', 5)[0].parent.page_source
    assert [entry for entry in browser.get_log('browser') if entry['level'] == 'SEVERE'] == []
