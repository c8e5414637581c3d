"""The routes of a server, as an ASGI application."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, JSONResponse
from starlette.types import ASGIApp

import vet
from vet.errors import UserError
from vet.serve import inference_protocol
from vet.serve.encoding import plain
from vet.serve.engine import Engine
from vet.serve.gate import Gate
from vet.serve.limits import Limits
from vet.serve.logs import FACTS
from vet.serve.metrics import Metrics
from vet.serve.refusals import RefusedError, refused
from vet.serve.requests import ExplainBody, PredictBody, Reader
from vet.serve.schemas import schema_of
from vet.serve.urls import AllowedHosts

PAGE = Path(__file__).parent / 'page'
DOCS = Path(fastapi_offline.__file__).parent / 'static'  # Swagger UI, without a foreign host
OF_PAGE = (  # what the page may load; a browser refuses everything else
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
OF_DOCS = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
ERRORS: dict[int | str, dict[str, Any]] = {
    code: dict(
        description=text,
        content={
            'application/json': dict(
                schema=dict(type='object', required=['error'], properties=dict(error=dict(type='string')))
            )
        },
    )
    for code, text in {
        '400': 'the body is broken',
        '401': 'a token is needed',
        '404': 'there is no such model',
        '408': 'the body came too slowly',
        '413': 'the request is too large',
        '415': 'the body is of another type',
        '422': 'a value or an image is wrong',
        '429': 'too much waits; try again after Retry-After seconds',
        '503': 'the model cannot be loaded, or the answer takes too long',
    }.items()
}


def build_app(
    engine: Engine,
    limits: Limits,
    metrics: Metrics,
    token: str | None = None,
    hosts: AllowedHosts | None = None,
    origins: Sequence[str] = (),
    names: Sequence[str] = ('*',),
    ready: Callable[[], bool] = lambda: True,
) -> ASGIApp:
    """The application of an engine.

    token: that requests must send. hosts: of URLs that requests may name. origins: of other pages that may
        read answers in a browser (CORS). names: by which a request may call this server, in the header Host.
        ready(): whether the server takes new requests.
    """

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    app = FastAPI(
        title='vet',
        version=vet.__version__,
        description='Tuned models of images. Many models share one frozen backbone.',
        docs_url=None,
        redoc_url=None,
        lifespan=life,
        responses=ERRORS,
    )
    _add_errors(app)
    _add_health(app, metrics, ready)
    _add_models(app, engine, Reader(limits, hosts or AllowedHosts()))
    app.include_router(inference_protocol.routes(engine, limits, ready))
    _add_pages(app)
    inside: ASGIApp = Gate(app, limits, metrics, token, names)
    if origins:
        inside = CORSMiddleware(
            inside,
            allow_origins=list(origins),
            allow_methods=['GET', 'POST'],
            allow_headers=['Authorization', 'Content-Type', 'X-Request-ID'],
        )
    return inside


def _add_errors(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            text = (
                error.detail
                if error.status_code != 400
                else f'the body is broken: {error.detail.rstrip(".")}.'
            )
            found = RefusedError(error.status_code, text, error.headers)
        else:
            found = refused(error)
        return JSONResponse({'error': str(found)}, found.status, found.headers)

    for kind in (HTTPException, RefusedError, UserError, Exception):
        app.add_exception_handler(kind, answer)


def _add_health(app: FastAPI, metrics: Metrics, ready: Callable[[], bool]) -> None:
    @app.get('/healthz', tags=['server'], summary='Whether the server runs')
    def healthz() -> dict[str, str]:
        return dict(status='ok')

    @app.get('/readyz', tags=['server'], summary='Whether the server takes new requests')
    def readyz() -> dict[str, str]:
        if not ready():
            raise RefusedError(503, 'the server ends.')
        return dict(status='ready')

    @app.get('/metrics', tags=['server'], summary='Metrics for Prometheus')
    def text() -> Response:
        return Response(metrics.text(), media_type='text/plain; version=0.0.4; charset=utf-8')


def _add_models(app: FastAPI, engine: Engine, reader: Reader) -> None:
    @app.get('/v1/models', tags=['models'], summary='All models')
    async def models() -> dict[str, list[dict[str, str]]]:
        return dict(models=[dict(name=name, state=engine.state(name)) for name in engine.names()])

    @app.get('/v1/models/{name}', tags=['models'], summary='One model. It is loaded if it is not in memory')
    async def model(name: str) -> dict[str, Any]:
        return await engine.describe(name)

    @app.post(
        '/v1/predict',
        tags=['models'],
        summary='The answers of a model for images',
        openapi_extra=_body(PredictBody, 'images', is_list=True),
    )
    async def predict(request: Request) -> Response:
        began = time.perf_counter()
        asked = await reader.predict(request, engine.names())
        _note(request, asked.question.model, len(asked.images))
        found = await engine.predict(asked.question, asked.images)
        return JSONResponse(
            dict(
                model=found.model,
                version=found.version,
                answers=[plain(answer) for answer in found.answers],
                seconds=round(time.perf_counter() - began, 4),
            )
        )

    @app.post(
        '/v1/explain',
        tags=['models'],
        summary='Where the network looks, as a PNG file',
        openapi_extra=_body(ExplainBody, 'image', is_list=False),
        response_class=Response,
        responses={200: {'content': {'image/png': {}}}},
    )
    async def explain(request: Request) -> Response:
        asked = await reader.explain(request, engine.names())
        _note(request, asked.question.model, 1)
        [image] = asked.images
        picture = await engine.explain(asked.question, image, asked.method, asked.label)
        return Response(picture, media_type='image/png')


def _note(request: Request, model: str, images: int) -> None:
    """More facts for the log of the request."""
    request.scope['state'][FACTS] = dict(model=model[:128], images=images)


def _body(kind: type[Any], files: str, is_list: bool) -> dict[str, Any]:
    """The two forms of a body for /openapi.json: JSON, and a form with files."""
    schema = schema_of(kind)
    file = dict(type='string', format='binary')
    fields = {key: value for key, value in schema['properties'].items() if key != files}
    form = dict(
        type='object',
        required=[files],
        properties={files: dict(type='array', items=file) if is_list else file, **fields},
    )
    content = {'application/json': dict(schema=schema), 'multipart/form-data': dict(schema=form)}
    return dict(requestBody=dict(content=content, required=True))


def _add_pages(app: FastAPI) -> None:
    @app.get('/', include_in_schema=False)
    def page() -> Response:
        return FileResponse(PAGE / 'index.html', headers={'Content-Security-Policy': OF_PAGE})

    @app.get('/docs', include_in_schema=False)
    def docs() -> Response:
        shown = get_swagger_ui_html(
            openapi_url='openapi.json',
            title='vet: the routes',
            swagger_js_url='docs-files/swagger-ui-bundle.js',
            swagger_css_url='docs-files/swagger-ui.css',
            swagger_favicon_url='page/icon.svg',
        )
        shown.headers['Content-Security-Policy'] = OF_DOCS
        return shown

    app.mount('/page', StaticFiles(directory=PAGE), name='page')
    app.mount('/docs-files', StaticFiles(directory=DOCS), name='docs-files')
