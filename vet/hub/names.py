"""Finds the model folder of a name: a folder here, or a repository of the Hugging Face hub or of ModelScope.

Repositories are downloaded.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import huggingface_hub
from huggingface_hub import errors

import vet
from vet.errors import DataError, UserError, shown
from vet.files import refuse_links
from vet.hub.file_names import CONFIGURATION, FOLDERS, LARGEST_JSON, TENSORS, WEIGHTS
from vet.hub.presets import PRESETS
from vet.log import say, warn
from vet.offline import answers, cache_alone_without_network

CARD = 'README.md'
# the only files that vet downloads from a repository, each with the most bytes it may take
LARGEST = {CONFIGURATION: LARGEST_JSON, TENSORS: 8 * 2**30, CARD: LARGEST_JSON, WEIGHTS: 8 * 2**30}
READ = list(LARGEST)
FILES = 10_000  # in a repository; the clients list all files before they download the first
ID = re.compile(r'(\w[\w.-]*/\w[\w.-]*)(?:@(.+))?')
UNREACHABLE = 'not reachable, and not downloaded before'
SAID: dict[type, str] = {  # short texts for errors of the client, whose own texts are long
    errors.LocalEntryNotFoundError: UNREACHABLE,
    errors.OfflineModeIsEnabled: 'not reachable',
    errors.RepositoryNotFoundError: 'no such repository, or a private one, which `hf auth login` opens',
    errors.GatedRepoError: 'access must be asked for on its page',
    errors.RevisionNotFoundError: 'the repository has no such revision',
}


def require_path(folder: object) -> None:
    """UserError if `folder` is no path."""
    if not isinstance(folder, str | os.PathLike) or not str(folder) or '\0' in str(folder):
        raise UserError(f"folder is {shown(folder)}; allowed: the path of a folder, such as 'flowers'.")


def find_folder(name: str | Path) -> Path:
    """The model folder that `name` means.

    name: a folder here, a work folder with an output/, or the file:// URL of a folder. If no such folder
        exists, an id 'owner/name' or 'owner/name@revision': first of the Hugging Face hub, then of
        ModelScope.
    Without a network, earlier downloads are found. A repository with too many or too large files is not
    downloaded, see LARGEST and FILES. DataError, with everything that was tried.
    """
    require_path(name)
    path = to_path(name)
    if path.is_dir():
        if str(name).startswith('file:'):  # a URL may point to a stranger's folder
            refuse_links(path, READ)
        return path / 'output' if (path / 'output' / CONFIGURATION).is_file() else path
    known = (
        ' This is the id of a model to be trained: build_trainer(model=…) trains it.'
        if str(name) in PRESETS
        else ''
    )
    match = ID.fullmatch(name) if isinstance(name, str) else None
    if match and '..' in (match[2] or ''):
        raise UserError(
            f'{name!r} has the revision {match[2]!r}; a revision is a branch, a tag or a commit, such as '
            "'owner/name@main'."
        )
    if path.is_file():
        raise DataError(f'{str(name)!r} is a file. Give the folder of the model. {FOLDERS}')
    if known or not match:
        raise DataError(f'the model folder {str(name)!r} does not exist.{known} {FOLDERS}')
    tried = []
    for hub, download in HUBS.items():
        try:
            folder = Path(download(*match.groups()))
            if (folder / CONFIGURATION).is_file():
                _tell_origin(str(name), hub)
                return folder
            tried.append(f'{hub}: the repository holds no {CONFIGURATION}')
        except Exception as error:  # the clients raise errors of many kinds
            tried.append(f'{hub}: {reason(error)}')
    raise DataError(
        f'{name!r} is no folder here, and no hub gave it ({"; ".join(tried)}). Give the output/ folder of a '
        'training run, or the id of a model on a hub. Without a network, vet finds only models that were '
        'downloaded before.'
    )


def _tell_origin(name: str, hub: str) -> None:
    """Says that a model comes from a hub. An id may look like a path that is mistyped."""
    owner = name.partition('/')[0]
    if Path(owner).is_dir():
        warn(
            f'there is no folder {name!r}, so this is the model {name!r} of {hub}. If you meant a folder in '
            f'{owner!r}, correct the path.'
        )
    else:
        say(f'{name!r} is the model of {hub}.')


def find_model(name: str | Path) -> Path:
    """The model folder that `name` means, see `find_folder`. DataError if the folder holds no model."""
    folder = find_folder(name)
    if not any((folder / file).exists() for file in (CONFIGURATION, WEIGHTS)):
        raise DataError(f'{str(folder)!r} is no model folder: the folder has no {CONFIGURATION}. {FOLDERS}')
    return folder


def _from_hugging_face(repo_id: str, revision: str | None) -> str:
    client: dict[str, Any] = dict(library_name='vet', library_version=vet.__version__)
    with cache_alone_without_network():
        try:
            info = huggingface_hub.HfApi(**client).model_info(repo_id, revision=revision, files_metadata=True)
        except Exception:  # the download fails too and says why, or finds an earlier download
            pass
        else:
            _require_small({file.rfilename: file.size for file in info.siblings or ()})
        return huggingface_hub.snapshot_download(repo_id, revision=revision, allow_patterns=READ, **client)


def _from_modelscope(repo_id: str, revision: str | None) -> str:
    try:
        from modelscope import HubApi, snapshot_download
    except ImportError as error:
        raise DataError(
            'not asked, since its package is not installed '
            '(pip install "vision-efficient-tuning[modelscope]")'
        ) from error
    # without this check, the client tries again for half a minute
    offline = not answers(os.environ.get('MODELSCOPE_ENDPOINT', 'https://modelscope.cn'))
    try:
        if not offline:
            files = HubApi().get_model_files(repo_id, revision=revision, recursive=False)
            _require_small({file['Path']: file['Size'] for file in files})
        return snapshot_download(repo_id, revision=revision, allow_patterns=READ, local_files_only=offline)
    except Exception as error:
        raise DataError(UNREACHABLE if offline else reason(error)) from error


def _require_small(sizes: Mapping[str, int | None]) -> None:
    """DataError if a repository has too many files, or too large a file for vet to download.

    sizes: the bytes of each file, by its path, as the hub says them.
    """
    if len(sizes) > FILES:
        raise DataError(f'the repository has {len(sizes):,} files; allowed: {FILES:,}')
    for name, most in LARGEST.items():
        if (sizes.get(name) or 0) > most:
            raise DataError(
                f'{name} takes {sizes[name]:,} bytes; allowed: {most:,}. If you trust the repository, '
                'download the file yourself, and give the folder'
            )


HUBS: dict[str, Callable[[str, str | None], str]] = {
    'Hugging Face': _from_hugging_face,
    'ModelScope': _from_modelscope,
}


def reason(error: Exception) -> str:
    """The reason why a hub's client failed, in one line."""
    said = next((SAID[kind] for kind in type(error).__mro__ if kind in SAID), '')
    return said or next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip('.')


def to_path(name: str | Path) -> Path:
    """The path of a file:// URL, or of a path. UserError for a URL of another machine."""
    host = urlsplit(name).netloc if isinstance(name, str) and name.startswith('file:') else ''
    if host not in ('', 'localhost'):
        raise UserError(f'{name!r} names the host {host!r}; a file:// URL begins with file:///.')
    return Path(
        url2pathname(urlsplit(name).path) if isinstance(name, str) and name.startswith('file:') else name
    )
