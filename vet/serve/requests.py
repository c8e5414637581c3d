"""Requests: what a client may send to the routes of vet, read and checked."""

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from vet.pipelines import Options
from vet.serve.engine import Question
from vet.serve.limits import Limits
from vet.serve.refusals import RefusedError
from vet.serve.urls import AllowedHosts

Model = TypeVar('Model', bound=BaseModel)
Name = Annotated[str, Field(max_length=128)]
Base64 = Annotated[str, Field(description='an image file in base64', examples=['iVBORw0KGgo='])]


class Url(BaseModel):
    """An image at a URL. Only servers with --allow-urls fetch images."""

    model_config = ConfigDict(extra='forbid')
    url: Annotated[str, Field(max_length=2048)]


class PredictBody(BaseModel):
    """The JSON body of /v1/predict. model may be left out if the server has one model."""

    model_config = ConfigDict(extra='forbid')
    model: Name | None = None
    images: Annotated[list[Base64 | Url], Field(min_length=1)]
    topk: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    task: Name | None = None


class ExplainBody(BaseModel):
    """The JSON body of /v1/explain."""

    model_config = ConfigDict(extra='forbid')
    model: Name | None = None
    image: Base64 | Url
    method: Annotated[str, Field(max_length=32, description='grad-cam or rollout')] = 'grad-cam'
    label: Annotated[str, Field(max_length=512)] | None = None
    task: Name | None = None


@dataclass(frozen=True)
class Asked:
    """A request, read: the question, and the encoded images."""

    question: Question
    images: list[bytes]
    method: str = 'grad-cam'
    label: str | None = None


class Reader:
    """Reads requests. names(): of the served models."""

    def __init__(self, limits: Limits, hosts: AllowedHosts):
        self._limits = limits
        self._hosts = hosts

    async def predict(self, request: Request, names: list[str]) -> Asked:
        """The question of a request to /v1/predict. RefusedError if the request is wrong."""
        if _kind(request) == 'multipart/form-data':
            async with request.form(max_files=self._limits.images + 1, max_fields=16) as form:
                images = await _files(form, 'images')
                body = _parsed_form(PredictBody, form, images=[''])
        else:
            body = await _json(request, PredictBody)
            self._require_few(len(body.images))
            images = [await self._bytes(image, number) for number, image in enumerate(body.images)]
        self._require_few(len(images))
        question = Question(_chosen(body.model, names), Options(body.topk, body.threshold), body.task)
        return Asked(question, images)

    async def explain(self, request: Request, names: list[str]) -> Asked:
        """The question of a request to /v1/explain."""
        if _kind(request) == 'multipart/form-data':
            async with request.form(max_files=2, max_fields=16) as form:
                images = await _files(form, 'image')
                body = _parsed_form(ExplainBody, form, image='')
            if len(images) != 1:
                raise RefusedError(422, 'the field "image" must hold one file.')
        else:
            body = await _json(request, ExplainBody)
            images = [await self._bytes(body.image, 0)]
        question = Question(_chosen(body.model, names), Options(), body.task)
        return Asked(question, images, body.method, body.label)

    def _require_few(self, images: int) -> None:
        if not 1 <= images <= self._limits.images:
            raise RefusedError(
                413 if images else 422,
                f'the request has {images} images; allowed: 1 to {self._limits.images}, as files in the '
                'field "images" of a form, or as base64 in the list "images" of a JSON body.',
            )

    async def _bytes(self, image: str | Url, number: int) -> bytes:
        if isinstance(image, Url):
            return await self._hosts.fetch(image.url, self._limits.body)
        return decoded(image, number)


def decoded(text: str, number: int) -> bytes:
    """The bytes of a base64 text. RefusedError for another text."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(
            422,
            f'image {number} of the request is no base64 text ({error}). A file of this machine or an '
            'address is never opened from a text.',
        ) from error


def _kind(request: Request) -> str:
    return request.headers.get('content-type', '').partition(';')[0].strip().lower()


async def _json(request: Request, kind: type[Model]) -> Model:
    if _kind(request) != 'application/json':
        raise RefusedError(
            415, 'the Content-Type must be application/json or multipart/form-data. See /docs.'
        )
    return checked(kind, await request.body())


def checked(kind: type[Model], body: bytes) -> Model:
    """A JSON body as an object. RefusedError names each wrong field."""
    try:
        return kind.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise RefusedError(422, _said(error)) from error


async def _files(form: FormData, field: str) -> list[bytes]:
    """The files of a form, which stand in one field. RefusedError for a file or a text in a wrong field."""
    texts = [key for key, value in form.multi_items() if not isinstance(value, UploadFile)]
    twice = [key for key in texts if texts.count(key) > 1]
    if twice:
        raise RefusedError(422, f'the form has the field {twice[0][:64]!r} several times; allowed: once.')
    for key, value in form.multi_items():
        if (key == field) != isinstance(value, UploadFile):
            what = 'a text' if key == field else 'a file'
            raise RefusedError(
                422,
                f'the field {key[:64]!r} of the form holds {what}. Files stand in the field '
                f'{field!r}, each with a file name: curl -F {field}=@FILE.',
            )
    return [await value.read() for value in form.getlist(field) if isinstance(value, UploadFile)]


def _parsed_form(kind: type[Model], form: FormData, **files: object) -> Model:
    """The fields of a form that are texts. files: what stands for the fields of files."""
    given = {key: value for key, value in form.items() if key not in files and isinstance(value, str)}
    try:
        return kind.model_validate({**{key: value for key, value in given.items() if value}, **files})
    except ValidationError as error:
        raise RefusedError(422, _said(error)) from error


def _said(error: ValidationError) -> str:
    """The faults that pydantic found, without the values that the client sent."""
    faults = []
    for each in error.errors(include_url=False, include_input=False, include_context=False)[:5]:
        place = '.'.join(str(key)[:64] for key in each['loc'])
        faults.append(f'{place}: {each["msg"]}' if place else each['msg'])
    return f'the request is wrong: {"; ".join(faults)}. See /docs.'


def _chosen(name: str | None, names: list[str]) -> str:
    if name is not None:
        return name
    if len(names) == 1:
        return names[0]
    raise RefusedError(422, 'the server has several models: name one as "model". GET /v1/models lists them.')
