"""The routes of the Open Inference Protocol, version 2, which clients of Triton and KServe speak.

Source: https://github.com/open-inference/open-inference-protocol and Triton's extension for binary data.
"""

import json
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.responses import JSONResponse

import vet
from vet.pipelines import Options
from vet.serve.engine import Engine, Question
from vet.serve.limits import Limits
from vet.serve.logs import FACTS
from vet.serve.refusals import RefusedError
from vet.serve.requests import checked, decoded
from vet.serve.schemas import schema_of
from vet.serve.tensors import Output, outputs_of, texts_of

IMAGE = 'image'  # the name of the input
JSON_LENGTH = 'Inference-Header-Content-Length'


class Tensor(BaseModel):
    """An input: encoded images. data: base64 texts, if the images are not behind the JSON text."""

    name: Annotated[str, Field(max_length=128)]
    datatype: Annotated[str, Field(max_length=16)]
    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(max_length=8)]
    data: list[JsonValue] | None = None
    parameters: dict[str, JsonValue] = {}


class Wanted(BaseModel):
    name: Annotated[str, Field(max_length=128)]
    parameters: dict[str, JsonValue] = {}


class Parameters(BaseModel):
    model_config = ConfigDict(extra='allow')
    topk: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    task: Annotated[str, Field(max_length=128)] | None = None
    binary_data_output: bool = False


class InferBody(BaseModel):
    """The JSON body of /v2/models/{name}/infer."""

    id: Annotated[str, Field(max_length=128)] | None = None
    inputs: Annotated[list[Tensor], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[Wanted], Field(max_length=16)] | None = None
    parameters: Parameters = Parameters()


def routes(engine: Engine, limits: Limits, is_ready: Callable[[], bool]) -> APIRouter:
    router = APIRouter(prefix='/v2', tags=['Open Inference Protocol'])

    @router.get('', summary='The server')
    def server() -> dict[str, Any]:
        return dict(name='vet', version=vet.__version__, extensions=['binary_tensor_data'])

    @router.get('/health/live', summary='Whether the server runs')
    def live() -> dict[str, bool]:
        return dict(live=True)

    @router.get('/health/ready', summary='Whether the server takes new requests')
    def ready() -> dict[str, bool]:
        if not is_ready():
            raise RefusedError(503, 'the server ends.')
        return dict(ready=True)

    @router.get('/models/{name}', summary='The inputs and outputs of a model')
    async def model(name: str) -> dict[str, Any]:
        example = outputs_of(await engine.example(name))
        return dict(
            name=name,
            versions=[(await engine.describe(name))['version']],
            platform='vet',
            inputs=[dict(name=IMAGE, datatype='BYTES', shape=[-1])],
            outputs=[
                dict(name=each.name, datatype=each.datatype, shape=[-1] * len(each.shape)) for each in example
            ],
        )

    @router.get('/models/{name}/ready', summary='Whether a model answers')
    async def model_ready(name: str) -> dict[str, Any]:
        if name not in engine.names():
            raise RefusedError(404, f'there is no model {name[:128]!r}.')
        if engine.state(name) == 'failed':
            raise RefusedError(503, f'the model {name!r} cannot be loaded.')
        return dict(name=name, ready=True)

    @router.post(
        '/models/{name}/infer',
        summary='The answers for images',
        openapi_extra=dict(
            requestBody=dict(content={'application/json': dict(schema=schema_of(InferBody))}, required=True)
        ),
    )
    async def infer(name: str, request: Request) -> Response:
        body, binary = _parts(await request.body(), request.headers.get(JSON_LENGTH))
        asked = checked(InferBody, body)
        images = _images(asked.inputs[0], binary)
        if not 1 <= len(images) <= limits.images:
            raise RefusedError(413, f'the request has {len(images)} images; allowed: 1 to {limits.images}.')
        given = asked.parameters
        request.state._state[FACTS] = dict(model=name[:128], images=len(images))
        question = Question(name, Options(given.topk, given.threshold), given.task)
        found = await engine.predict(question, images)
        head: dict[str, Any] = dict(model_name=found.model, model_version=found.version)
        if asked.id is not None:
            head['id'] = asked.id
        return _answered(head, outputs_of(found.answers), asked)

    return router


def _parts(body: bytes, json_length: str | None) -> tuple[bytes, bytes]:
    """The JSON text of a body, and the binary data behind it."""
    if json_length is None:
        return body, b''
    if not json_length.isdigit() or int(json_length) > len(body):
        raise RefusedError(400, f'{JSON_LENGTH} is {json_length[:32]!r}, but the body has {len(body)} bytes.')
    return body[: int(json_length)], body[int(json_length) :]


def _images(tensor: Tensor, binary: bytes) -> list[bytes]:
    """The encoded images of an input."""
    if tensor.name != IMAGE or tensor.datatype != 'BYTES':
        raise RefusedError(
            422, f'the input must be named {IMAGE!r}, with the datatype BYTES: encoded images, such as JPEG.'
        )
    if 'binary_data_size' in tensor.parameters:
        if tensor.parameters['binary_data_size'] != len(binary):
            raise RefusedError(400, 'binary_data_size is not the number of bytes behind the JSON text.')
        images = texts_of(binary)
    else:
        images = [decoded(text, number) for number, text in enumerate(_flat(tensor.data or []))]
    count = 1
    for side in tensor.shape:
        count *= side
    if count != len(images):
        raise RefusedError(422, f'the shape {tensor.shape} stands for {count} images; given: {len(images)}.')
    return images


def _flat(data: list[JsonValue]) -> Iterator[str]:
    """The texts of a list, which may hold lists, as the protocol allows."""
    for each in data:
        if isinstance(each, list):
            yield from _flat(each)
        elif isinstance(each, str):
            yield each
        else:
            raise RefusedError(422, f'the data of the input {IMAGE!r} must be base64 texts, one an image.')


def _answered(head: dict[str, Any], found: list[Output], asked: InferBody) -> Response:
    """The answer with the wanted outputs: each in JSON, or as bytes if the client wants bytes."""
    wants = {each.name: each.parameters.get('binary_data') is True for each in asked.outputs or ()}
    if asked.outputs is None:
        wants = dict.fromkeys((each.name for each in found), asked.parameters.binary_data_output)
    by_name = {each.name: each for each in found}
    unknown = [name for name in wants if name not in by_name]
    if unknown:
        raise RefusedError(422, f'there is no output {unknown[0]!r}; allowed: {", ".join(by_name)}.')
    outputs, blobs = [], []
    for name, is_binary in wants.items():
        if is_binary:
            described, blob = by_name[name].as_bytes()
            blobs.append(blob)
        else:
            described = by_name[name].as_json()
        outputs.append(described)
    if not blobs:
        return JSONResponse(dict(head, outputs=outputs))
    text = json.dumps(dict(head, outputs=outputs)).encode()
    return Response(
        text + b''.join(blobs), media_type='application/octet-stream', headers={JSON_LENGTH: str(len(text))}
    )
