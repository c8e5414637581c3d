"""What the server refuses, each time with a status and a text that says why. No request opens a path or URL."""

import base64
import io
import socket
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serve.folders import encoded, photo
from tests.serve.running import ask, predict, running, wait_until
from vet.serve.urls import AllowedHosts


def bomb(side: int) -> bytes:
    """A small PNG file that says side x side pixels."""
    from struct import pack

    def chunk(kind, data):
        return pack('>I', len(data)) + kind + data + pack('>I', zlib.crc32(kind + data))

    head = pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', head)
        + chunk(b'IDAT', zlib.compress(bytes(10_000)))
        + chunk(b'IEND', b'')
    )


def said(answer, status):
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {'error'} and answer.headers['x-request-id']
    return answer.json()['error']


@pytest.mark.parametrize(
    'image, text',
    [
        (b'', 'image 0 of the request cannot be read'),
        (b'no image', 'Allowed: JPEG, PNG'),
        (encoded(photo(0))[:-2000], 'image 0 of the request cannot be decoded'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'cannot be read'),
        (bomb(8_000), '8,000 x 8,000 pixels; allowed: 50,000,000'),
        (bomb(30_000), 'far more pixels than 50,000,000'),
    ],
)
def test_images_that_are_none(client, photos, image, text):
    assert text in said(ask(client, 'one', image), 422)
    assert text.replace('image 0', 'image 1') in said(ask(client, 'one', photos[0], image), 422)


@pytest.mark.parametrize(
    'body, status, text',
    [
        (dict(images=['AAAA']), 422, 'several models'),
        (dict(model='nobody', images=['AAAA']), 404, "no model 'nobody'"),
        (dict(model='../../etc', images=['AAAA']), 404, 'GET /v1/models'),
        (dict(model='one'), 422, 'images: Field required'),
        (dict(model='one', images=[]), 422, 'images'),
        (dict(model='one', images=['AA'] * 65), 413, '65 images; allowed: 1 to 64'),
        (dict(model='one', images=['/etc/passwd']), 422, 'is never opened'),
        (dict(model='one', images=['file:///etc/passwd']), 422, 'is never opened'),
        (dict(model='one', images=[dict(url='http://127.0.0.1/x')]), 422, '--allow-urls'),
        (dict(model='one', images=['AAAA'], topk=0), 422, 'topk'),
        (dict(model='one', images=['AAAA'], topk='2'), 422, 'topk'),
        (dict(model='one', images=['AAAA'], topk=True), 422, 'topk'),
        (dict(model='one', images=['AAAA'], threshold=True), 422, 'threshold'),
        (dict(model='one', images=['AAAA'], threshold=2), 422, 'threshold'),
        (dict(model='one', images=['AAAA'], more=1), 422, 'more: Extra inputs'),
        (dict(model='numbers', images=['AAAA'], threshold=0.5), 422, 'no score'),
        (dict(model=['one'], images=['AAAA']), 422, 'model'),
    ],
)
def test_wrong_bodies(client, body, status, text):
    assert text in said(client.post('/v1/predict', json=body), status)


@pytest.mark.parametrize('body', [b'', b'{', b'[' * 100_000, b'\xff\xfe', b'null', b'{"images": 1e999}'])
def test_broken_json(client, body):
    said(client.post('/v1/predict', content=body, headers={'Content-Type': 'application/json'}), 422)


@pytest.mark.parametrize(
    'data, field, text',
    [
        (dict(images='x'), 'images', "the field 'images' of the form holds a text"),
        (dict(), 'image', "the field 'image' of the form holds a file. Files stand in the field 'images'"),
        (dict(topk=['1', '2']), 'images', "the field 'topk' several times"),
        (dict(odd='1'), 'images', 'odd: Extra inputs'),
        (dict(topk='many'), 'images', 'topk: Input should be a valid integer'),
    ],
)
def test_wrong_forms(client, photos, data, field, text):
    """No file and no text of a form is left out: the answers would stand at other places."""
    files = [('images', ('a.png', photos[0])), (field, ('b.png', photos[1]))]
    assert text in said(client.post('/v1/predict', data=dict(model='one', **data), files=files), 422)


def test_the_numbers_of_a_form_are_texts(client, photos):
    assert len(predict(client, 'one', photos[0], topk='2', threshold='')[0]['labels']) == 2


def test_other_types_and_routes(client):
    assert 'multipart/form-data' in said(client.post('/v1/predict', content=b'x'), 415)
    said(
        client.post(
            '/v1/predict',
            content=b'x',
            headers={'Content-Type': 'application/json', 'Content-Encoding': 'gzip'},
        ),
        415,
    )
    said(client.post('/v1/predict', content=b'x', headers={'Content-Type': 'multipart/form-data'}), 400)
    said(
        client.post(
            '/v1/predict', content=b'--a\r\nx', headers={'Content-Type': 'multipart/form-data; boundary=a'}
        ),
        422,
    )
    said(client.get('/nowhere'), 404)
    said(client.get('/v1/predict'), 405)
    assert client.get('/page/../app.py').status_code == 404
    assert client.get('/page/%2e%2e/app.py').status_code == 404


def test_a_body_has_a_limit_of_bytes_and_all_bodies_have_one(folders, photos):
    with running(folders['one'], limits=dict(body=10_000, bodies=15_000, seconds=4)) as client:
        assert '10,000 bytes' in said(ask(client, 'one', b'x' * 20_000), 413)
        parts = (b'x' * 1000 for _ in range(30))
        said(client.post('/v1/predict', content=parts, headers={'Content-Type': 'application/json'}), 413)

        def slow():
            yield b'x' * 9000
            time.sleep(1)
            yield b'x'

        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(client.post, '/v1/predict', content=slow())
            time.sleep(0.5)
            answer = client.post('/v1/predict', content=b'x' * 9000)
            assert 'bodies of other requests' in said(answer, 429) and answer.headers['retry-after'] == '1'
            said(other.result(), 415)
        wait_until(lambda: ask(client, 'one', photos[0]).status_code == 200)


def test_a_slow_body_and_a_slow_head_are_cut_off(folders):
    with running(folders['one'], limits=dict(seconds=1)) as client:
        host, port = client.base_url.host, client.base_url.port

        def received(first):
            with socket.create_connection((host, port), timeout=20) as connection:
                connection.sendall(first)
                return connection.makefile('rb').read()

        head = b'POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n'
        assert received(head + b'\r\nabc').startswith(b'HTTP/1.1 408 ')
        assert received(head) == b''
        assert received(b'') == b''


@pytest.mark.slow
def test_a_full_queue_and_a_long_wait_are_refused(folders, photos, monkeypatch):
    from vet.serve.opened import Opened

    with running(folders['one'], limits=dict(queue=4, seconds=3, batch=1)) as client:
        wait_until(lambda: ask(client, 'one', photos[0]).status_code == 200)  # on a busy machine too
        whole = Opened.answers
        monkeypatch.setattr(Opened, 'answers', lambda *args: (time.sleep(1), whole(*args))[1])
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(ask, client, 'one', *photos[:4])
            wait_until(lambda: client.engine._waiting == 4)
            busy = ask(client, 'one', photos[0])
            assert '4 images wait' in said(busy, 429) and int(busy.headers['retry-after']) >= 1
            assert 'takes more than 3 s' in said(slow.result(), 503)
        wait_until(lambda: client.engine._waiting == 0)
        monkeypatch.undo()
        predict(client, 'one', *photos)


def test_a_fault_of_vet_is_logged_and_says_nothing_of_the_inside(folders, photos, monkeypatch, caplog):
    from vet.serve.opened import Opened

    def fail(*args):
        raise RuntimeError('secret')

    with running(folders['one']) as client:
        monkeypatch.setattr(Opened, 'answers', fail)
        answer = client.post('/v1/predict', files=dict(images=photos[0]), headers={'X-Request-ID': 'mine-1'})
        assert 'X-Request-ID' in said(answer, 500) and 'secret' not in answer.text
        assert answer.headers['x-request-id'] == 'mine-1'
        monkeypatch.undo()
        predict(client, 'one', photos[0])
    [record] = [record for record in caplog.records if record.levelname == 'ERROR']
    assert record.facts == dict(request_id='mine-1') and 'secret' in str(record.exc_info[1])


def test_the_token(folders, photos):
    with running(folders['one'], token='geheim') as client:
        for path in ('/', '/healthz', '/readyz', '/docs', '/page/page.js', '/v2/health/ready'):
            assert client.get(path).status_code == 200
        for path in ('/v1/models', '/metrics', '/v2/models/one', '/v1/models/one'):
            assert 'Authorization' in said(client.get(path), 401)
        said(ask(client, 'one', photos[0]), 401)
        for wrong in ('Bearer geheimx', 'Bearer x', 'geheim', 'Bearer gehéim'):
            said(client.get('/v1/models', headers={'Authorization': wrong.encode()}), 401)
        client.headers['Authorization'] = 'Bearer geheim'
        predict(client, 'one', photos[0])


def test_other_pages_and_other_names_of_the_host(folders):
    origin = {'Origin': 'https://a.example'}
    with running(folders['one'], names=['127.0.0.1']) as client:
        assert 'access-control-allow-origin' not in client.get('/v1/models', headers=origin).headers
        for other in ('evil.example', '127.0.0.1.evil.example', '[::1', '', 'localhost'):
            refused = said(client.get('/v1/models', headers={'Host': other}), 400)
            assert f'calls this server {other!r}; allowed: 127.0.0.1' in refused
    with running(folders['one'], names=['::1', 'Name.example', '*.inside.example']) as client:
        for name in ('[::1]:8000', 'name.example', 'NAME.example:80', 'a.inside.example'):
            assert client.get('/v1/models', headers={'Host': name}).status_code == 200
        said(client.get('/v1/models', headers={'Host': 'inside.example'}), 400)
    with running(folders['one'], origins=['https://a.example'], token='t') as client:
        preflight = client.options('/v1/predict', headers={**origin, 'Access-Control-Request-Method': 'POST'})
        assert preflight.headers['access-control-allow-origin'] == 'https://a.example'
        other = client.get('/healthz', headers={'Origin': 'https://b.example'})
        assert 'access-control-allow-origin' not in other.headers


def test_every_answer_forbids_guessing_types_and_frames(client):
    for path in ('/', '/docs', '/v1/models', '/nowhere'):
        headers = client.get(path).headers
        assert headers['x-content-type-options'] == 'nosniff' and headers['x-frame-options'] == 'DENY'
    for path in ('/', '/docs'):
        assert "default-src 'none'" in client.get(path).headers['content-security-policy']


# URLs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def site(monkeypatch):
    """A web server on this machine that serves a photo at /photo, and redirects /to?… to that URL."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from urllib.parse import unquote, urlsplit

    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            target = urlsplit(self.path)
            self.send_response(302 if target.path == '/to' else 200)
            if target.path == '/to':
                self.send_header('Location', unquote(target.query))
            self.end_headers()
            if target.path != '/to':
                self.wfile.write(encoded(photo(0)))

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.seen = seen
    yield server
    server.shutdown()


def test_urls_of_allowed_hosts(folders, photos, site, monkeypatch):
    port = site.server_port

    def asked(client, url):
        return client.post('/v1/predict', json=dict(model='one', images=[dict(url=url)]))

    with running(folders['one'], hosts=['localhost']) as client:
        private = said(asked(client, f'http://localhost:{port}/photo'), 422)
        assert 'private address' in private and site.seen == []
        # from here on, this machine counts as a public host
        monkeypatch.setattr(AllowedHosts, 'require_address', lambda self, address: None)
        assert asked(client, f'http://localhost:{port}/photo').json()['answers'] == predict(
            client, 'one', photos[0]
        )
        site.seen.clear()
        for url, text in (
            (f'http://127.0.0.1:{port}/photo', 'not on a host'),
            (f'http://localhost.evil.example:{port}/photo', 'not on a host'),
            (f'http://localhost@127.0.0.1:{port}/photo', 'not on a host'),
            (f'http://user:word@localhost:{port}/photo', 'a user or a password'),
            ('file:///etc/passwd', 'not on a host'),
            (f'ftp://localhost:{port}/photo', 'not on a host'),
            ('http://[::1', 'cannot be fetched'),
        ):
            assert text in said(asked(client, url), 422)
        assert site.seen == []
        assert 'not on a host' in said(
            asked(client, f'http://localhost:{port}/to?http://127.0.0.1:{port}/photo'), 422
        )
        assert len(site.seen) == 1


@pytest.mark.parametrize(
    'address, is_public',
    [
        ('93.184.215.14', True),
        ('2606:2800:21f:cb07:6820:80da:af6b:8b2c', True),
        ('64:ff9b::5db8:d70e', True),
        *[
            (address, False)
            for address in (
                '127.0.0.1',
                '10.0.0.1',
                '172.16.0.1',
                '192.168.1.1',
                '169.254.169.254',
                '0.0.0.0',
                '100.64.0.1',
                '224.0.0.1',
                '::1',
                'fe80::1%eth0',
                'fc00::1',
                '::ffff:127.0.0.1',
                '::ffff:10.0.0.1',
                '64:ff9b::7f00:1',
                '64:ff9b::10.0.0.1',
                '2002:7f00:1::',
                '2002:c0a8:101::1',
            )
        ],
    ],
)
def test_private_addresses(address, is_public):
    if is_public:
        AllowedHosts(['a']).require_address(address)
    else:
        with pytest.raises(OSError, match='private'):
            AllowedHosts(['a']).require_address(address)


def test_base64_of_an_image_is_no_url(client):
    text = base64.b64encode(encoded(photo(3), 'JPEG')).decode()
    assert client.post('/v1/predict', json=dict(model='one', images=[text])).status_code == 200
    assert io.BytesIO(base64.b64decode(text)).read(2) == b'\xff\xd8'
