"""A hub on the loopback, which answers huggingface_hub's own client as the Hugging Face hub does."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = 'hf_fake'
ROUTES = [
    (method, re.compile(pattern), name)
    for method, pattern, name in (
        ('HEAD', r'/', 'home'),
        ('POST', r'/api/repos/create', 'create'),
        ('POST', r'/api/validate-yaml', 'validate'),
        ('POST', r'/api/models/(.+/.+)/branch/(.+)', 'branch'),
        ('POST', r'/api/models/(.+/.+)/preupload/(.+)', 'preupload'),
        ('POST', r'/(.+/.+)\.git/info/lfs/objects/batch', 'batch'),
        ('PUT', r'/lfs/(\w+)', 'upload'),
        ('POST', r'/api/models/(.+/.+)/commit/(.+)', 'commit'),
        ('GET', r'/api/models/([^/]+/[^/]+)(?:/revision/(.+))?', 'info'),
        ('GET', r'/api/models/(.+/.+)/tree/(\w+)', 'tree'),
        ('HEAD', r'/(.+/.+)/resolve/(\w+)/(.+)', 'resolve'),
        ('GET', r'/(.+/.+)/resolve/(\w+)/(.+)', 'resolve'),
    )
]


class FakeHub(ThreadingHTTPServer):
    """branches: {(id, branch): files}; private: {id: bool}; commits: (id, branch, message, names of its
    files); taken: paths of files that were downloaded. Files are {path: bytes}; their hash stands for the
    commit. sizes: {path: the bytes that the hub says the file takes}, where this is not the truth."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.branches, self.private, self.blobs, self.commits, self.taken = {}, {}, {}, [], []
        self.sizes = {}
        self.url = f'http://127.0.0.1:{self.server_port}'

    def files(self, repo_id, revision):
        found = [
            files
            for (name, branch), files in self.branches.items()
            if name == repo_id and revision in (branch, sha(files))
        ]
        if not found:
            known = any(name == repo_id for name, _ in self.branches)
            raise Refused(404, 'RevisionNotFound' if known else 'RepoNotFound')
        return found[0]

    def unknown(self, body):
        raise Refused(404)

    def home(self, body):
        return {}

    def create(self, body):
        repo_id = f'{body["organization"]}/{body["name"]}'
        if repo_id in self.private:
            raise Refused(409, '', url=f'{self.url}/{repo_id}')
        self.branches[repo_id, 'main'], self.private[repo_id] = (
            {},
            body.get('visibility') == 'private' or body.get('private', False),
        )
        return dict(url=f'{self.url}/{repo_id}')

    def validate(self, body):
        front = yaml.safe_load(body['content'].split('---')[1])
        assert isinstance(front, dict) and body['repoType'] == 'model'
        return {}

    def branch(self, body, repo_id, name):
        if (repo_id, name) in self.branches:
            raise Refused(409)
        self.branches[repo_id, name] = dict(self.files(repo_id, 'main'))
        return {}

    def preupload(self, body, repo_id, revision):
        self.files(repo_id, revision)
        return dict(
            files=[
                dict(
                    path=file['path'],
                    shouldIgnore=False,
                    uploadMode='lfs' if file['path'].endswith('tensors') else 'regular',
                )
                for file in body['files']
            ]
        )

    def batch(self, body, repo_id):
        return dict(
            transfer='basic',
            objects=[
                dict(file, actions=dict(upload=dict(href=f'{self.url}/lfs/{file["oid"]}')))
                for file in body['objects']
            ],
        )

    def upload(self, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.blobs[oid] = body
        return {}

    def commit(self, body, repo_id, revision):
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line['value']['path']: base64.b64decode(line['value']['content'])
            if line['key'] == 'file'
            else self.blobs[line['value']['oid']]
            for line in lines[1:]
        }
        self.branches[repo_id, revision] = self.files(repo_id, revision) | files
        self.commits.append((repo_id, revision, lines[0]['value']['summary'], sorted(files)))
        return dict(commitUrl=f'{self.url}/{repo_id}/commit/1', commitOid='1')

    def info(self, body, repo_id, revision):
        files = self.files(repo_id, revision or 'main')
        return dict(
            id=repo_id,
            sha=sha(files),
            siblings=[
                dict(rfilename=path, size=self.sizes.get(path, len(data))) for path, data in files.items()
            ],
            tags=[],
            private=False,
        )

    def tree(self, body, repo_id, revision):
        return [
            dict(type='file', path=path, size=len(data), oid=hashlib.sha1(data).hexdigest())
            for path, data in self.files(repo_id, revision).items()
        ]

    def resolve(self, body, repo_id, revision, path):
        return self.files(repo_id, revision)[path]


def sha(files):
    digest = hashlib.sha1()
    for path in sorted(files):
        digest.update(path.encode() + b'\0' + files[path])
    return digest.hexdigest()


class Refused(Exception):
    def __init__(self, status, code='', **body):
        self.status, self.code, self.body = status, code, body


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def answer(self):
        path, hub = unquote(urlsplit(self.path).path), self.server
        name, groups = next(
            (
                (name, match.groups())
                for method, pattern, name in ROUTES
                if method == self.command and (match := pattern.fullmatch(path))
            ),
            ('unknown', ()),
        )
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        if name not in ('upload', 'commit') and body:
            body = json.loads(body)
        status, headers, data = 200, {}, b''
        try:
            if self.command == 'POST' and self.headers.get('Authorization') != f'Bearer {TOKEN}':
                raise Refused(401)
            result = getattr(hub, name)(body, *groups)
            if name == 'resolve':
                data = result
                headers = {'ETag': f'"{hashlib.sha1(data).hexdigest()}"', 'X-Repo-Commit': groups[1]}
                hub.taken += [groups[2]] * (self.command == 'GET')
            else:
                data = json.dumps(result).encode()
        except Refused as refused:
            status, headers, data = (
                refused.status,
                {'X-Error-Code': refused.code},
                json.dumps(refused.body).encode(),
            )
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(data)

    do_HEAD = do_GET = do_POST = do_PUT = answer

    def log_message(self, *args):
        pass
