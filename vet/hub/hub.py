"""Loads models from a hub, and pushes models to the Hugging Face hub.

A model is README.md, configuration.json and tuner.safetensors. Files from a hub are data, like the files of
any folder.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

import vet
from vet.core.model import ImageClassifier
from vet.core.multitask import MultiTaskClassifier
from vet.errors import UserError
from vet.files import publish_folder, refuse_links, write_file
from vet.hub.card import model_card, without_paths
from vet.hub.file_names import CONFIGURATION, TENSORS
from vet.hub.folders import read_folder
from vet.hub.model_folder import read_configuration
from vet.hub.names import CARD, ID, READ, find_folder, reason, to_path


def from_pretrained(
    name: str | Path, backbone: str | Path | Mapping[str, str | Path] | None = None
) -> ImageClassifier | MultiTaskClassifier:
    """The classifier of a folder or id, in eval mode on the CPU: normalised images (B, 3, H, W) -> logits (B,
    K).

    name: a folder or an id, see `find_folder`.
    backbone: where the backbone's weights are, if not where the folder says.
    For images that are not prepared, use `pipeline`.
    """
    return read_folder(find_folder(name), backbone)[0]


def push_to_hub(
    folder: str | Path,
    repo_id: str | Path,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = 'Add the model',
    revision: str | None = None,
    license: str | None = None,
) -> str:
    """Pushes a model folder to the Hugging Face hub, with a model card, as one commit. Returns the
    repository's URL.

    vet reads the folder before vet sends anything. The card is the README.md of the folder, if the folder has
    a README.md. Paths of this machine are left out of configuration.json: the sha256 identifies the
    backbone's weights.

    repo_id: 'owner/name'; or a folder of the same layout: a file:// URL, a Path, or a path that is absolute
        or begins with '.'.
    private: whether a new repository is private.
    token: None: the token of `hf auth login`.
    revision: a branch.
    license: the license that the card names.
    """
    folder = find_folder(folder)
    match = ID.fullmatch(repo_id) if isinstance(repo_id, str) else None
    on_hub = match is not None and match[2] is None
    if not on_hub and isinstance(repo_id, str) and not repo_id.startswith(('file:', '.', os.sep)):
        raise UserError(
            f'{repo_id!r} is no place for a model; allowed: the id "owner/name" of a repository, a file:// '
            'URL, or a path that is absolute or begins with ".".'
        )
    files = _files(folder, str(repo_id), license)
    if not on_hub:
        return _publish(files, folder, to_path(repo_id))
    api = HfApi(token=token, library_name='vet', library_version=vet.__version__)
    name = str(repo_id)
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        operations = [CommitOperationAdd(path, data) for path, data in files.items()]
        api.create_commit(name, operations, commit_message=commit_message, revision=revision)
    except Exception as error:  # the client raises errors of many kinds
        raise UserError(
            f'{name!r} could not be pushed to {api.endpoint} ({reason(error)}). Log in with `hf auth login` '
            'as a user who may write to this repository, and check the network.'
        ) from error
    return str(url)


def _files(folder: Path, repo_id: str, license: str | None) -> dict[str, bytes]:
    """The files to send, by name.

    DataError if the folder is no whole model folder, or has links out of it.
    """
    refuse_links(folder, READ)
    card = model_card(folder, repo_id, license)
    written_card = folder / CARD
    configuration = json.dumps(without_paths(read_configuration(folder)), indent=1, ensure_ascii=False)
    return {
        CONFIGURATION: configuration.encode(),
        TENSORS: (folder / TENSORS).read_bytes(),
        CARD: written_card.read_bytes() if written_card.is_file() else card.encode(),
    }


def _publish(files: Mapping[str, bytes], folder: Path, path: Path) -> str:
    """Writes the files as the folder `path`, by one rename. Returns the folder's URL.

    UserError if other files are there.
    """
    others = (
        [file.name for file in path.iterdir() if file.name not in files]
        if path.is_dir()
        else [path.name] * path.exists()
    )
    if others or path.resolve() == folder.resolve():
        raise UserError(
            f'{str(path)!r} {f"holds {others[0]!r}" if others else "is the folder to be pushed"}; give a new '
            'folder.'
        )

    def fill(temporary: Path) -> None:
        for name, data in files.items():
            write_file(temporary / name, data)

    publish_folder(path, fill)
    return path.resolve().as_uri()
