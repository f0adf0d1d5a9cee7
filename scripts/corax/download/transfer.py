"""One file over HTTP: resumed where it broke off, retried, and kept only if its hash is right.

The hub's own client throws a partial file away when its process ends, so a model of 100 GB could never
arrive in jobs of an hour. Here what has come stays as `<name>.part` and the next try asks for the rest.
"""

import hashlib
import http.client
import logging
import shutil
import ssl
import string
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Literal, TypeVar
from urllib.parse import quote, urlsplit

from corax import __version__
from corax.errors import CoraxError
from corax.progress import Progress

T = TypeVar("T")
log = logging.getLogger("corax")

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each retry; a try that brought new bytes begins the list again."""
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as broken."""
CHUNK = 1 << 20
MEGABYTE = 1_000_000
RETRIED = (408, 416, 425, 429)
"""HTTP statuses that are retried, besides those from 500 on."""
NETWORK_ERRORS = (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException)


class TransientError(Exception):
    """A failure that the next try may not meet: a broken connection, a busy server."""


class RefusedError(CoraxError):
    """The server answered, and said no."""

    def __init__(self, what: str, status: int) -> None:
        super().__init__(f"{what}: the server answers {status} {http.client.responses.get(status, '')}".rstrip())
        self.status = status


@dataclass(frozen=True)
class Checksum:
    """The hash that a file must have: its sha256, or git's blob id (sha1 of `blob <size>\\0` and the content)."""

    algorithm: Literal["sha256", "git blob id"]
    value: str

    def of(self, path: Path) -> str:
        """The same kind of hash of the file at `path`."""
        if self.algorithm == "sha256":
            total = hashlib.sha256()
        else:
            total = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                total.update(chunk)
        return total.hexdigest()


def fetch(url: str, target: Path, checksum: Checksum, size: int | None = None, token: str | None = None) -> None:
    """Download `url` to `target`, unless it is there already (it is only put there when its hash is right).

    `size` is the file's size in bytes, if known beforehand; `token` is sent to the URL's own host only.
    A file with a wrong hash is deleted and fetched once again. Raises RefusedError where the server says
    no, CoraxError for anything else that a retry did not mend.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(target)
    found = ""
    for _ in range(2):
        retry(lambda: _transfer(url, partial, size, token), shown(url), lambda: _size(partial))
        found = checksum.of(partial)
        if found == checksum.value:
            partial.rename(target)
            return
        partial.unlink()
        log.warning("%s: %s is %s, deleted", shown(url), checksum.algorithm, found)
    raise CoraxError(f"{shown(url)}: {checksum.algorithm} is {found}, expected {checksum.value} (fetched twice)")


def retry(action: Callable[[], T], what: str, progress: Callable[[], int] = lambda: 0) -> T:
    """The result of `action`, tried again after each TransientError, as often as WAITS has entries.

    A try that raised `progress()` begins the count again. Raises CoraxError naming `what` in the end.
    """
    waits = iter(WAITS)
    while True:
        before = progress()
        try:
            return action()
        except TransientError as error:
            if progress() > before:
                waits = iter(WAITS)
            wait = next(waits, None)
            if wait is None:
                raise CoraxError(f"{what}: {error}; given up after {len(WAITS) + 1} tries") from None
            log.warning("%s: %s; next try in %g s", what, error, wait)
            time.sleep(wait)


def shown(url: str) -> str:
    """A URL for people to read: without its query, which may hold a signature."""
    return url.partition("?")[0]


def arrived(target: Path) -> int:
    """Bytes of `target` that earlier tries of `fetch` have brought."""
    return _size(target) or _size(_partial(target))


def check_space(folder: Path, size: int) -> None:
    """Raise CoraxError if the file system of `folder` has no room for `size` bytes more."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise CoraxError(f"{folder}: the disk is full: {size / 1e9:.3f} GB needed, {free / 1e9:.3f} GB free")


def _transfer(url: str, partial: Path, size: int | None, token: str | None) -> None:
    """One try to bring what is missing of `partial`; raises TransientError if it is still not complete."""
    start = _size(partial)
    if size is not None and start > size:
        partial.unlink()
        start = 0
    if size is not None and start == size and partial.exists():
        return
    try:
        with _open(url, start, token) as response:
            if response.status != 206:
                start = 0  # the server ignored the range and sends all
            end = size if response.length is None else start + response.length
            if size is None and end is not None:
                check_space(partial.parent, end - start)
            with partial.open("ab" if start else "wb") as file:
                _copy(response, file, start, end, Path(urlsplit(url).path).name)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start and size is None:
            return  # nothing is left to send: the hash decides whether what we have is the file
        if error.code == 416 and start:
            raise TransientError(f"the server's file ends before byte {start} of {size}") from None
        if error.code in RETRIED or error.code >= 500:
            raise TransientError(f"the server answers {error.code}") from None
        raise RefusedError(shown(url), error.code) from None
    except NETWORK_ERRORS as error:
        raise TransientError(f"no connection ({getattr(error, 'reason', None) or error!r})") from None
    expected = end if size is None else size
    if expected is not None and _size(partial) != expected:
        raise TransientError(f"the connection ended after {_size(partial)} of {expected} bytes")


def _copy(response: http.client.HTTPResponse, file: IO[bytes], start: int, end: int | None, name: str) -> None:
    done = start
    try:
        with Progress(f"download {name}", (end or 0) // MEGABYTE, "MB", start // MEGABYTE) as progress:
            while chunk := response.read1(CHUNK):
                file.write(chunk)
                megabytes = (done + len(chunk)) // MEGABYTE - done // MEGABYTE
                if megabytes and end:
                    progress.advance(megabytes)
                done += len(chunk)
    except OSError as error:
        error.filename = error.filename or file.name  # so that "the disk is full" says which
        raise


def _open(url: str, start: int, token: str | None) -> http.client.HTTPResponse:
    ascii_url = quote(url, safe=string.punctuation)
    request = urllib.request.Request(ascii_url, headers={"User-Agent": f"corax/{__version__}"})  # noqa: S310 (settings admit http only)
    if start:
        request.add_header("Range", f"bytes={start}-")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    response: http.client.HTTPResponse = urllib.request.build_opener(_Redirect).open(request, timeout=TIMEOUT)
    return response


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows redirects over HTTP, but keeps the token from hosts other than the first: a hub redirects to storage."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            return None  # urllib would follow to FTP, whose answers are others
        new = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if new is not None and urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            new.remove_header("Authorization")
        return new


def _partial(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
