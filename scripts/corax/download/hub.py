"""A repository of a model hub: one revision, each file checked against the hash that the hub keeps of it."""

import logging
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from corax.download import files, model_folder, transfer
from corax.errors import CoraxError
from corax.settings.download import HubSource, Kind

log = logging.getLogger("corax")

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
"""Read when the hub's library is first imported; without it any use of the library asks a second host for things."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of the repository: its path, size in bytes and hash."""

    name: str
    size: int
    checksum: transfer.Checksum


def get(source: HubSource, kind: Kind, work: Path, folder: Path) -> None:
    """Download the repository's usable files into `folder`; what has come stays in `work` until then.

    The hub is HF_ENDPOINT, the token HF_TOKEN, both from the environment only. Raises CoraxError.
    """
    origin = source.origin
    token = os.environ.get("HF_TOKEN", "").strip() or None
    remote = _listing(source, kind, token)
    if kind == "model":
        model_folder.require([file.name for file in remote], origin)
    names = set(files.select(_wanted(source, remote), kind, origin))
    chosen = sorted((file for file in remote if file.name in names), key=lambda file: (file.size, file.name))
    transfer.check_space(work, sum(file.size - transfer.arrived(work / file.name) for file in chosen))
    log.info("%s: %d files, %.3f GB", origin, len(chosen), sum(file.size for file in chosen) / 1e9)
    for file in chosen:
        try:
            transfer.fetch(_url(source, kind, file.name), work / file.name, file.checksum, file.size, token)
        except transfer.RefusedError as error:
            raise _refusal(source, error.status, token) from None
    for file in chosen:
        files.link(work / file.name, folder / file.name)


def _wanted(source: HubSource, remote: list[RemoteFile]) -> list[str]:
    if not source.files:
        return [file.name for file in remote]
    names = [file.name for file in remote if any(fnmatchcase(file.name, pattern) for pattern in source.files)]
    if not names:
        raise CoraxError(f"{source.repository}: no file matches {' '.join(source.files)}")
    return names


def endpoint() -> str | None:
    """The hub's address, None for that which its client knows."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _url(source: HubSource, kind: Kind, name: str) -> str:
    from huggingface_hub import hf_hub_url

    return str(
        hf_hub_url(source.repository, name, repo_type=_repo_type(kind), revision=source.revision, endpoint=endpoint())
    )


def _repo_type(kind: Kind) -> str:
    return "model" if kind == "model" else "dataset"


def _listing(source: HubSource, kind: Kind, token: str | None) -> list[RemoteFile]:
    """All files of the revision, with size and hash."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled

    api = HfApi(endpoint=endpoint(), token=token or False)  # False: no token stored in the home folder

    def ask() -> Any:
        try:
            return api.repo_info(
                source.repository,
                revision=source.revision,
                repo_type=_repo_type(kind),
                files_metadata=True,
                timeout=transfer.TIMEOUT,
            )
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in transfer.RETRIED or status >= 500:
                raise transfer.TransientError(f"the hub answers {status}") from None
            raise _refusal(source, status, token, error.response.headers.get("X-Error-Code")) from None
        except OfflineModeIsEnabled:
            raise CoraxError(f"{source.repository}: HF_HUB_OFFLINE is set, so nothing can be downloaded") from None
        except HTTPError as error:
            raise transfer.TransientError(f"the hub {api.endpoint} cannot be reached ({error})") from None
        except HFValidationError as error:
            raise CoraxError(f"{source.repository}: {files.first_line(error)}") from None
        except (ValueError, TypeError, LookupError) as error:  # a proxy's page for people, say
            reason = files.first_line(error)
            raise CoraxError(f"{source.repository}: {api.endpoint} does not answer as a hub does ({reason})") from None

    info = transfer.retry(ask, source.repository)
    if info.sha != source.revision:
        raise CoraxError(f"{source.repository}: the hub gives revision {info.sha}, expected {source.revision}")
    return [_remote_file(source, sibling) for sibling in info.siblings or []]


def _remote_file(source: HubSource, sibling: Any) -> RemoteFile:
    if sibling.size is None:
        raise CoraxError(f"{source.repository}: the hub gives no size of {sibling.rfilename}")
    if sibling.lfs is not None:
        checksum = transfer.Checksum("sha256", sibling.lfs.sha256)
    elif sibling.blob_id:
        checksum = transfer.Checksum("git blob id", sibling.blob_id)
    else:
        raise CoraxError(f"{source.repository}: the hub gives no hash of {sibling.rfilename}")
    return RemoteFile(sibling.rfilename, sibling.size, checksum)


def _refusal(source: HubSource, status: int, token: str | None, code: str | None = None) -> CoraxError:
    """What a refusal means, by HTTP status and the hub's own error code."""
    where = f"{source.repository} at revision {source.revision}"
    hint = "is HF_TOKEN allowed to read it" if token else "set HF_TOKEN"
    if status in (401, 403):
        return CoraxError(f"{where}: access refused ({status}): {hint}, and accept its licence on the hub's page")
    if status == 404 and code == "RevisionNotFound":
        return CoraxError(f"{where}: the repository has no such revision (404)")
    if status == 404:
        return CoraxError(f"{where}: no such repository or file (404); if it is private: {hint}")
    return CoraxError(f"{where}: the hub answers {status}")
