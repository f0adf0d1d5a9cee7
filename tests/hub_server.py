"""A small model hub on loopback: the requests that a download makes, and the faults that it must survive.

    with HubServer(folder) as hub:
        hub.once["model.safetensors"] = ["drop", 503]      # the first two requests for the file
        hub.always["config.json"] = "corrupt"              # all of them
        os.environ["HF_ENDPOINT"] = hub.endpoint

It serves one repository, `folder`, at one revision, as both a model and a dataset. Like the real hub it keeps
large files elsewhere: their address redirects to a second server, the storage, which needs no token. Any file of
`folder` is also served as it is under /plain/<name>. A fault is a status (401, 403, 404, 503, …) or one of FAULTS.
"""

import hashlib
import json
import threading
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

REPOSITORY = "corvid/tiny"
REVISION = "0123456789abcdef0123456789abcdef01234567"
API = "api"
"""Stands for the request that lists the files, in `once` and `always`."""
FAULTS = {
    "drop": "the length is right, the connection ends half-way",
    "truncate": "a shorter file, its length as sent",
    "corrupt": "one bit flipped",
    "ignore-range": "the whole file, whatever part was asked for",
    "two-lengths": "the length is given twice in one header, as some proxies do",
    "page": "of the list of files: a page for people, as a proxy sends",
    "no-sizes": "of the list of files: their sizes are missing",
    "ftp": "a redirect to a server of another kind",
}
LARGE = 1000
"""Bytes from which on a file lies in the storage (LFS)."""
Fault = str | int


@dataclass(frozen=True)
class Request:
    """A request that came: which server, method, path, and the headers that matter."""

    server: str
    method: str
    path: str
    range: str | None
    authorization: str | None


class HubServer:
    """Context manager; see the module's docstring. `requests` lists what was asked, in order.

    With a `token` every request to the hub needs it (401 without, 403 with another). `gated` refuses it too.
    """

    def __init__(self, folder: Path, *, token: str | None = None, gated: bool = False) -> None:
        self.folder = folder
        self.token = token
        self.gated = gated
        self.once: dict[str, list[Fault]] = defaultdict(list)
        self.always: dict[str, Fault] = {}
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._servers = {name: self._server(name) for name in ("hub", "storage")}

    def _server(self, name: str) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"hub": self, "name": name})
        return ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def address(self, server: str) -> str:
        """http://127.0.0.1:<port> of `hub` or `storage`."""
        return f"http://127.0.0.1:{self._servers[server].server_port}"

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT must be."""
        return self.address("hub")

    def __enter__(self) -> Self:
        for server in self._servers.values():
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    def note(self, request: Request) -> None:
        """Remember a request."""
        with self._lock:
            self.requests.append(request)

    def fault(self, name: str) -> Fault | None:
        """The fault planned for this request for the file `name`."""
        with self._lock:
            planned = self.once[name]
            return planned.pop(0) if planned else self.always.get(name)

    def listing(self) -> dict[str, object]:
        """What the hub says about the revision, with the hashes of all files."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {
            "_id": "0" * 24,
            "id": REPOSITORY,
            "sha": REVISION,
            "private": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [self._sibling(path) for path in paths],
        }

    def tree(self) -> list[dict[str, object]]:
        """The same as the hub's other list says it."""
        siblings: Any = self.listing()["siblings"]
        entries = []
        for each in siblings:
            entry = {"type": "file", "path": each["rfilename"], "size": each["size"], "oid": each["blobId"]}
            if "lfs" in each:
                entry["lfs"] = {**each["lfs"], "oid": each["lfs"]["sha256"]}
            entries.append(entry)
        return entries

    def _sibling(self, path: Path) -> dict[str, object]:
        content = path.read_bytes()
        entry: dict[str, object] = {
            "rfilename": str(path.relative_to(self.folder)),
            "size": len(content),
            "blobId": blob_id(content),
        }
        if len(content) >= LARGE:
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
        return entry


def blob_id(content: bytes) -> str:
    """git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    name: str
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization")
        self.hub.note(Request(self.name, self.command, path, self.headers.get("Range"), authorization))
        if self.name == "hub" and not path.startswith("/plain/") and self._refused(authorization):
            return
        prefixes = {
            f"/api/models/{REPOSITORY}/revision/": self._send_listing,
            f"/api/datasets/{REPOSITORY}/revision/": self._send_listing,
            f"/api/models/{REPOSITORY}/tree/{REVISION}": self._send_tree,
            f"/{REPOSITORY}/resolve/{REVISION}/": self._resolve,
            f"/datasets/{REPOSITORY}/resolve/{REVISION}/": self._resolve,
            "/plain/": self._send_file,
        }
        for prefix, answer in prefixes.items():
            if path.startswith(prefix):
                answer(path.removeprefix(prefix))
                return
        self._status(404, "RepoNotFound")

    def _refused(self, authorization: str | None) -> bool:
        if self.hub.token is None and not self.hub.gated:
            return False
        if authorization is None:
            self._status(401, "GatedRepo" if self.hub.gated else "RepoNotFound")
        elif self.hub.gated or authorization != f"Bearer {self.hub.token}":
            self._status(403, "GatedRepo")
        else:
            return False
        return True

    def _send_listing(self, revision: str) -> None:
        fault = self.hub.fault(API)
        if isinstance(fault, int):
            self._status(fault)
        elif fault == "page":
            self._send(b"<html>Please log in</html>", {"Content-Type": "text/html"})
        elif fault == "no-sizes":
            siblings = [{"rfilename": "config.json", "blobId": "0"}]
            self._send(json.dumps({**self.hub.listing(), "siblings": siblings}).encode(), {})
        elif revision != REVISION:
            self._status(404, "RevisionNotFound")
        else:
            self._send(json.dumps(self.hub.listing()).encode(), {"Content-Type": "application/json"})

    def _send_tree(self, _: str) -> None:
        self._send(json.dumps(self.hub.tree()).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str) -> None:
        file = self.hub.folder / name
        if not file.is_file():
            self._status(404, "EntryNotFound")
            return
        content = file.read_bytes()
        headers = {"X-Repo-Commit": REVISION}
        if len(content) < LARGE:
            self._send_file(name, {**headers, "ETag": f'"{blob_id(content)}"'})
            return
        headers["X-Linked-Size"] = str(len(content))
        headers["X-Linked-ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        headers["Location"] = f"{self.hub.address('storage')}/plain/{name}?signature=secret"
        self._send(b"", headers, 302)

    def _send_file(self, name: str, headers: dict[str, str] | None = None) -> None:
        fault = self.hub.fault(name) if self.command == "GET" else None
        if isinstance(fault, int):
            self._status(fault)
            return
        content = (self.hub.folder / name).read_bytes()
        if fault == "truncate":
            content = content[: len(content) // 2]
        elif fault == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = dict(headers or {})
        if fault == "ignore-range":
            start = 0
        if fault == "ftp":
            self._send(b"", {"Location": "ftp://127.0.0.1/file"}, 302)
            return
        if start and start >= len(content):
            self._send(b"", {"Content-Range": f"bytes */{len(content)}"}, 416)
            return
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if fault == "two-lengths":
            headers["Content-Length"] = f"{len(content) - start}, {len(content) - start}"
            self.close_connection = True
        self._send(content[start:], headers, 206 if start else 200, cut=fault == "drop")

    def _status(self, status: int, code: str = "") -> None:
        self._send(b"", {"X-Error-Code": code} if code else {}, status)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200, cut: bool = False) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            # a client that was killed is no fault of the server
            with suppress(ConnectionError):
                self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True
