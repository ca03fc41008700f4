"""A hub for tests: Hugging Face's interface on the loopback, with faults on request, and a small proxy.

`HubServer` answers downloads like huggingface.co: `resolve` with its headers and its redirect to another origin (here another
port, "the CDN"), ranges, lists of files, private and gated repositories, errors with their codes. The real huggingface-hub,
pointed at it by `HF_ENDPOINT`, does not notice the difference. Tests request the faults of a network:

    with HubServer() as hub:
        commit = hub.add("owner/model", {"config.json": b"{}", "model.safetensors": bytes(5000)})
        hub.fault("model.safetensors", "cut", after=1000)
        ...  # a program with HF_ENDPOINT=hub.url
        assert [request.status for request in hub.requests if request.origin == "cdn"] == [200, 206]
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import re
import select
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler
from itertools import chain
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
from huggingface_hub import constants

Origin = Literal["hub", "cdn"]
Kind = Literal[
    "status",
    "cut",
    "stall",
    "drip",
    "wrong bytes",
    "wrong length",
    "ignore range",
    "wrong content-range",
    "html",
    "gzip",
    "redirect loop",
    "dead redirect",
    "no etag",
    "slow headers",
    "changed",
]

HOST = "127.0.0.1"
PIECE = 1 << 16  # bytes sent at a time
TICK = 0.02  # seconds between two pieces, if a rate is set
PAGE = b"<!DOCTYPE html>\n<html><head><title>Welcome</title></head><body>Please log in to use this network.</body></html>\n"


@dataclass
class Request:
    """A request as it came, and its answer. `status` and `sent` change while it is answered."""

    method: str
    path: str  # as it was received: quoted, with the query; a proxy's is the whole address
    headers: dict[str, str]  # names in lower case
    origin: Origin | Literal["proxy"]
    status: int = 0  # of the answer; 0: no answer (yet)
    sent: int = 0  # bytes of the answer's body handed to the system
    fault: Kind | None = None

    @property
    def range(self) -> str | None:
        """The header Range, or None."""
        return self.headers.get("range")


@dataclass
class Fault:
    """A fault that `HubServer.fault` has set up. `used` counts the requests that it has spoilt."""

    pattern: re.Pattern[str]
    kind: Kind
    times: int | None = 1
    method: str | None = None
    origin: Origin | None = None
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    after: int | None = None
    reset: bool = False
    rate: float = 20.0
    position: int = 0
    by: int = -1
    seconds: float = 1.0
    data: bytes | None = None
    used: int = 0


@dataclass(frozen=True)
class _File:
    """A file of a repository: in git itself, or as a pointer to an object of git-lfs."""

    data: bytes
    lfs: bool
    sha256: str
    blob: str  # git's name for the file, or for the pointer
    pointer_size: int

    @staticmethod
    def of(data: bytes, lfs: bool) -> _File:
        sha256 = hashlib.sha256(data).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
        return _File(data, lfs, sha256, git_blob(pointer if lfs else data), len(pointer))


@dataclass
class _Repository:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, _File]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)


@dataclass
class _Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    data: bytes | None = None  # the file of which the body is the whole or a part
    start: int = 0  # where in the file the body begins
    change: Callable[[bytes], None] | None = None  # gives the file other contents


def serve(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make huggingface-hub in this process use `server`, as if HF_ENDPOINT had named it from the start."""
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def git_blob(data: bytes) -> str:
    """Return git's name for these contents, 40 hexadecimal digits. It is the ETag of a small file, without quotes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubServer:
    """A hub at `url` and its CDN at `cdn_url`, for as long as the `with` lasts.

    Parameters
    ----------
    lfs_from
        Files of at least so many bytes are in LFS. For them, `resolve` redirects to the CDN, and the hash is the SHA-256.
    token, stranger
        The tokens of two users. The first may read everything, the second may not read what is private or gated. Any other
        token is refused with 401, as by the hub.
    page
        The number of entries of a list of files in one answer. The header Link leads to the rest.
    resolve_cache
        Send small files through a relative redirect (307 to /api/resolve-cache/...), as huggingface.co does. Without it they
        are sent directly.
    """

    def __init__(
        self,
        *,
        lfs_from: int = 1024,
        token: str = "hf_right",
        stranger: str = "hf_stranger",
        page: int = 1000,
        resolve_cache: bool = False,
    ) -> None:
        self.token = token
        self.stranger = stranger
        self.rate: float | None = None  # bytes a second on each connection; None: as fast as it goes
        self._lfs_from = lfs_from
        self._page = page
        self._resolve_cache = resolve_cache
        self._lock = threading.RLock()
        self._repositories: dict[str, _Repository] = {}
        self._objects: dict[str, bytes] = {}
        self._faults: list[Fault] = []
        self._requests: list[Request] = []
        self._hub = _Listener(partial(_HubHandler, self, "hub"))
        self._cdn = _Listener(partial(_HubHandler, self, "cdn"))
        self._dead = _bound()  # bound, but not listening: refuses connections, and nobody else can have the port

    @property
    def url(self) -> str:
        """The value for HF_ENDPOINT."""
        return self._hub.url

    @property
    def cdn_url(self) -> str:
        """The origin that large files come from."""
        return self._cdn.url

    @property
    def dead_url(self) -> str:
        """An address that refuses connections."""
        return f"http://{HOST}:{self._dead.getsockname()[1]}"

    @property
    def requests(self) -> list[Request]:
        """All requests so far, in order."""
        with self._lock:
            return list(self._requests)

    def forget(self) -> None:
        """Empty the list of requests."""
        with self._lock:
            self._requests.clear()

    def add(
        self,
        repository: str,
        files: Mapping[str, bytes],
        revision: str = "main",
        *,
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Make a commit of these files, let the revision (a branch, "refs/pr/1") point at it, and return its name.

        The files replace those of the revision. Earlier commits stay. The name is 40 hexadecimal digits, which depend only on
        the repository's name and the files.
        """
        tree = {path: _File.of(data, len(data) >= self._lfs_from) for path, data in sorted(files.items())}
        names = "".join(f"{path}\0{file.sha256}\n" for path, file in tree.items())
        commit = hashlib.sha1(f"{repository}\n{names}".encode()).hexdigest()
        with self._lock:
            known = self._repositories.setdefault(repository, _Repository())
            known.private |= private
            known.gated |= gated
            known.commits[commit] = tree
            known.revisions[revision] = commit
            self._objects.update({file.sha256: file.data for file in tree.values() if file.lfs})
        return commit

    def fault(self, match: str, kind: Kind, **options: Any) -> Fault:
        """Spoil the next requests (`times`; None: all) whose path matches the regular expression `match` anywhere.

        The options are the other attributes of `Fault`.

        The path is as in the log: quoted, with the query. The CDN's paths have the name of the file in the query, so `match`
        can be that name for both origins. `method` and `origin` restrict it further. Faults are tried in the order in which
        they were set up, and a request meets at most one. A request that a fault cannot spoil (a HEAD has no body to cut)
        passes, and is not counted. Bytes of a body are counted from the beginning of the body, not of the file.

        - "status": the answer is `status` with `headers`, say 429 with {"Retry-After": "1"}.
        - "cut": the connection ends without an answer, or, with `after`, after so many bytes of a file; `reset` it, or close it
          cleanly. Of the bytes before a reset, some may not arrive.
        - "stall": nothing comes, or only `after` bytes, but the connection stays open.
        - "drip": from `after` bytes on, `rate` bytes a second.
        - "wrong bytes": the byte at `position` in the file is changed. Answers without that byte pass.
        - "wrong length": the file is `by` bytes longer (zeros) or shorter (below zero), and the headers of this answer agree.
        - "ignore range": 200 and the whole file, although a range was requested.
        - "wrong content-range": the range begins `by` bytes later (below zero: earlier), and Content-Range says so.
        - "html": 200 and a web page, as from a hotel's network.
        - "gzip": the file compressed, in chunks, without its length, to clients that accept it. The hub sends text so.
        - "redirect loop": 302 to the same address.
        - "dead redirect": 302 to an address that refuses connections; the hub's other headers stay.
        - "no etag": ETag and X-Linked-Etag are missing.
        - "slow headers": the answer's head takes `seconds`, line by line.
        - "changed": this answer is right, but from then on the file has other contents: `data`, or the same with all bits
          inverted. At the hub they are in a new commit of the requested branch, at the CDN at the same address with another
          ETag.
        """
        fault = Fault(re.compile(match), kind, **options)
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Forget all faults. Those in progress go on."""
        with self._lock:
            self._faults.clear()

    def down(self, origin: Origin | None = None) -> None:
        """Refuse connections, at both ports or at one, and end the open ones."""
        for listener in self._listeners(origin):
            listener.stop()

    def up(self, origin: Origin | None = None) -> None:
        """Accept connections again, at the same ports."""
        for listener in self._listeners(origin):
            listener.start()

    def close(self) -> None:
        """End everything, so that no thread is left. Errors of the server itself are raised here."""
        for listener in (self._hub, self._cdn):
            listener.close()
        self._dead.close()
        for error in self._hub.errors + self._cdn.errors:
            raise RuntimeError("the hub failed") from error

    def __enter__(self) -> HubServer:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listeners(self, origin: Origin | None) -> list[_Listener]:
        return [listener for name, listener in (("hub", self._hub), ("cdn", self._cdn)) if origin in (None, name)]

    def _respond(self, request: Request) -> tuple[_Answer, Fault | None]:
        """Return the answer to a request, and the fault of its delivery, if any. Other faults are in the answer."""
        with self._lock:
            self._requests.append(request)
            answer = self._at_hub(request) if request.origin == "hub" else self._at_cdn(request)
            fault = next((fault for fault in self._faults if _meets(fault, request, answer)), None)
            if fault is not None:
                fault.used += 1
                request.fault = fault.kind
                answer = self._spoil(fault, request, answer)
            return answer, fault

    def _at_hub(self, request: Request) -> _Answer:
        url = urlsplit(request.path)
        query = {name: values[-1] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        parts = url.path.lstrip("/").split("/")
        user = request.headers.get("authorization")
        if user not in (None, f"Bearer {self.token}", f"Bearer {self.stranger}"):
            return _error(401, None, "Invalid credentials in Authorization header")
        if parts == ["api", "agent-harnesses"]:  # the client's first question
            return _json({"standardEnvVars": [], "harnesses": {}})
        match parts:
            case ["api", "models", owner, name, *rest] if not rest:
                what, revision = "info", "main"
            case ["api", "models", owner, name, ("revision" | "tree") as what, revision, *rest]:
                pass
            case ["api", "resolve-cache" as what, "models", owner, name, revision, *rest]:
                pass
            case [owner, name, "resolve" as what, revision, *rest] if rest:
                pass
            case _:
                return _error(404, None, "Sorry, we can't find the page you are looking for.")
        revision, path, repository = unquote(revision), unquote("/".join(rest)), f"{owner}/{name}"

        known = self._repositories.get(repository)
        trusted = user == f"Bearer {self.token}"
        if known is None or (known.private and not trusted):
            return _error(404 if user else 401, "RepoNotFound", "Repository not found")
        commit = revision if revision in known.commits else known.revisions.get(revision)
        if commit is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = known.commits[commit]
        if what in ("info", "revision"):
            return _json(_info(repository, known, commit, files, "blobs" in query))
        if what == "tree":
            return self._tree(request.path, query, path, files)
        if known.gated and not trusted:
            message = f"Access to model {repository} is restricted and you are not in the authorized list."
            return _error(403 if user else 401, "GatedRepo", message)
        if path not in files:
            return _error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})

        file = files[path]
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes", "ETag": f'"{file.blob}"'}
        linked = {"X-Linked-Etag": f'"{file.sha256 if file.lfs else file.blob}"', "X-Linked-Size": str(len(file.data))}
        change = partial(self._change, repository, path, revision) if revision in known.revisions else None
        if file.lfs:
            location = f"{self.cdn_url}/cdn/{file.sha256}?filename={quote(path)}&Expires=1924991999&Signature=none"
            status = 302
        elif self._resolve_cache and what == "resolve":
            location = f"/api/resolve-cache/models/{repository}/{commit}/{quote(path)}?etag={quote(headers['ETag'])}"
            status = 307
        else:
            headers["Content-Type"] = "text/plain; charset=utf-8"
            answer = _served(request, file.data, headers)
            answer.change = change
            return answer
        body = f"{http.client.responses[status]}. Redirecting to {location}".encode()
        return _Answer(status, {**headers, **linked, "Location": location}, body, change=change)

    def _at_cdn(self, request: Request) -> _Answer:
        if "authorization" in request.headers:  # so do stores whose addresses are signed
            return _Answer(400, {"Content-Type": "application/xml"}, b"<Error><Code>InvalidArgument</Code></Error>")
        url = urlsplit(request.path)
        name = url.path.rpartition("/")[2]
        data = self._objects.get(name)
        if data is None or url.path != f"/cdn/{name}":
            return _Answer(403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")
        filename = parse_qs(url.query).get("filename", [name])[0].rpartition("/")[2]
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
            "Content-Disposition": f"inline; filename*=UTF-8''{quote(filename)}; filename=\"{quote(filename)}\";",
            "ETag": f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"',
        }
        answer = _served(request, data, headers)
        answer.change = partial(self._objects.__setitem__, name)
        return answer

    def _tree(self, target: str, query: dict[str, str], folder: str, files: dict[str, _File]) -> _Answer:
        """Return the list of a folder's files (the root is ""), or of all files below it, one page."""
        prefix = f"{folder}/" if folder else ""
        recursive = query.get("recursive", "").lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for path, file in files.items():
            if path.startswith(prefix):
                names = path[len(prefix) :].split("/")
                parents = [prefix + "/".join(names[:depth]) for depth in range(1, len(names))]
                for parent in parents if recursive else parents[:1]:
                    oid = hashlib.sha1(parent.encode()).hexdigest()
                    entries[parent] = {"type": "directory", "oid": oid, "size": 0, "path": parent}
                if recursive or not parents:
                    entries[path] = {"type": "file", "oid": file.blob, "size": len(file.data), "path": path}
                    if file.lfs:
                        lfs = {"oid": file.sha256, "size": len(file.data), "pointerSize": file.pointer_size}
                        entries[path]["lfs"] = lfs
        if not entries and folder:
            return _error(404, "EntryNotFound", f"{folder} does not exist on this revision")
        begin = int(query.get("cursor", "0"))
        answer = _json(list(entries.values())[begin : begin + self._page])
        if begin + self._page < len(entries):
            rest = f"{self.url}{urlsplit(target).path}?recursive={recursive}&cursor={begin + self._page}"
            answer.headers["Link"] = f'<{rest}>; rel="next"'
        return answer

    def _change(self, repository: str, path: str, revision: str, data: bytes) -> None:
        known = self._repositories[repository]
        files = known.commits[known.revisions[revision]]
        self.add(repository, {**{name: file.data for name, file in files.items()}, path: data}, revision)

    def _spoil(self, fault: Fault, request: Request, answer: _Answer) -> _Answer:
        """Return the answer as the fault changes it. Faults of the delivery change nothing here."""
        data, headers = answer.data or b"", answer.headers
        match fault.kind:
            case "status":
                return _error(fault.status, None, f"{fault.status}, as ordered", fault.headers)
            case "html":
                return _Answer(200, {"Content-Type": "text/html; charset=utf-8"}, PAGE)
            case "redirect loop" | "dead redirect":
                location = f"{self.dead_url}{request.path}" if fault.kind == "dead redirect" else request.path
                return _Answer(302, {**headers, "Location": location}, b"Found")
            case "no etag":
                answer.headers = {
                    name: value for name, value in headers.items() if name not in ("ETag", "X-Linked-Etag")
                }
            case "wrong bytes":
                wrong = bytes([data[fault.position] ^ 0xFF])
                return _served(request, data[: fault.position] + wrong + data[fault.position + 1 :], headers)
            case "wrong length":
                wrong = data + bytes(fault.by) if fault.by > 0 else data[: max(0, len(data) + fault.by)]
                return _served(request, wrong, headers)
            case "ignore range":
                return _served(request, data, headers, ranges=False)
            case "wrong content-range":
                start = min(max(0, answer.start + fault.by), len(data) - 1)
                return _part(data, start, start + len(answer.body), headers)
            case "gzip":
                packed = gzip.compress(data, mtime=0)
                chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(packed), packed)
                encoding = {"Content-Encoding": "gzip", "Transfer-Encoding": "chunked", "ETag": f"W/{headers['ETag']}"}
                return _Answer(200, {**headers, **encoding}, chunks)
            case "changed" if answer.change is not None:
                old = data if answer.data is not None else self._linked(answer)
                answer.change(fault.data if fault.data is not None else bytes(byte ^ 0xFF for byte in old))
        return answer

    def _linked(self, answer: _Answer) -> bytes:
        """Return the contents that a redirect leads to."""
        name = answer.headers["X-Linked-Etag"].strip('"')
        if name in self._objects:
            return self._objects[name]
        files = (
            file for known in self._repositories.values() for files in known.commits.values() for file in files.values()
        )
        return next(file.data for file in files if file.blob == name)


class Proxy:
    """A forward proxy for plain HTTP at `url`, the value for HTTP_PROXY. `requests` lists its requests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._listener = _Listener(partial(_ProxyHandler, self))

    @property
    def url(self) -> str:
        return self._listener.url

    @property
    def requests(self) -> list[Request]:
        """All requests so far, in order. Their paths are whole addresses."""
        with self._lock:
            return list(self._requests)

    def __enter__(self) -> Proxy:
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for wrong in self._listener.errors:
            raise RuntimeError("the proxy failed") from wrong


def _bound(port: int = 0) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((HOST, port))
    return sock


class _Listener(socketserver.TCPServer):
    """A port of the loopback, with a thread per connection. While stopped, it keeps the port and refuses connections."""

    request_queue_size = 128

    def __init__(self, handler: Callable[[Any, Any, socketserver.BaseServer], socketserver.BaseRequestHandler]) -> None:
        super().__init__((HOST, 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = _bound()
        self.port: int = self.socket.getsockname()[1]
        self.url = f"http://{HOST}:{self.port}"
        self.errors: list[BaseException] = []
        self._loop: threading.Thread | None = None
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, list[socket.socket]] = {}  # what a thread may be waiting for

    def start(self) -> None:
        if self._loop is None:
            self.server_activate()
            self._loop = threading.Thread(target=self.serve_forever, args=(TICK,), daemon=True)
            self._loop.start()

    def stop(self) -> None:
        if self._loop is not None:
            self.shutdown()
            self._loop.join()
            self._loop = None
            self.socket.close()
            self.socket = _bound(self.port)
        with self._lock:
            connections = dict(self._connections)
        for connection in chain.from_iterable(connections.values()):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in connections:
            thread.join(timeout=10)
            if thread.is_alive():
                self.errors.append(TimeoutError("a connection did not end"))

    def close(self) -> None:
        self.stop()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(target=self._serve, args=(request, client_address), daemon=True)
        with self._lock:
            self._connections[thread] = [request]
        thread.start()

    def adopt(self, connection: socket.socket) -> None:
        """Let a connection that this thread has made end together with the one that it serves."""
        with self._lock:
            if self._loop is None:
                raise _HangUp
            self._connections[threading.current_thread()].append(connection)

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except (_HangUp, OSError):
            pass  # the other side has gone, or this side pretends to
        except Exception as error:
            self.errors.append(error)
        finally:
            self.shutdown_request(request)
            with self._lock:
                del self._connections[threading.current_thread()]


class _HangUp(Exception):  # noqa: N818
    """The connection ends here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    connection: socket.socket

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def note(self, origin: Origin | Literal["proxy"]) -> Request:
        return Request(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, origin)


class _HubHandler(_Handler):
    def __init__(self, hub: HubServer, origin: Origin, *args: Any) -> None:
        self.hub = hub
        self.origin: Origin = origin
        super().__init__(*args)

    def do_GET(self) -> None:
        request = self.note(self.origin)
        answer, fault = self.hub._respond(request)
        kind = fault.kind if fault else None
        if fault and kind in ("cut", "stall") and fault.after is None:
            self.end(fault)
        head = self.head(answer)
        request.status = answer.status
        if fault and kind == "slow headers":
            for line in head:
                self.wait(fault.seconds / len(head))
                self.wfile.write(line)
        else:
            self.wfile.write(b"".join(head))
        if request.method == "HEAD":
            return
        if fault and kind in ("cut", "stall", "drip"):
            after = fault.after or 0
            self.send(request, answer.body[:after])
            if kind != "drip":
                self.end(fault)
            self.send(request, answer.body[after:], fault.rate)
        else:
            self.send(request, answer.body)

    do_HEAD = do_GET  # noqa: N815

    def head(self, answer: _Answer) -> list[bytes]:
        """Return the lines before the body, as bytes, with the empty one."""
        headers = dict(answer.headers)
        if "Transfer-Encoding" not in headers:
            headers["Content-Length"] = str(len(answer.body))
        if self.close_connection:
            headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {answer.status} {http.client.responses.get(answer.status, '')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return [f"{line}\r\n".encode("latin-1") for line in [*lines, ""]]

    def send(self, request: Request, body: bytes, rate: float | None = None) -> None:
        """Send a body, or a part of one, at `rate`, else at the hub's rate, else as fast as possible."""
        due = time.monotonic()
        at = 0
        while at < len(body):
            speed = rate or self.hub.rate
            size = max(1, int(speed * TICK)) if speed else PIECE
            piece = body[at : at + size]
            if speed:
                due += len(piece) / speed
                self.wait(due - time.monotonic())
            else:
                due = time.monotonic()
            request.sent += len(piece)  # before sending: once the bytes have arrived, they must be counted
            self.wfile.write(piece)
            at += len(piece)

    def wait(self, seconds: float) -> None:
        """Wait, but not longer than the connection lasts at both ends."""
        if select.select([self.connection], [], [], max(0.0, seconds))[0]:
            raise _HangUp

    def end(self, fault: Fault) -> None:
        """Be silent until the other side or the hub ends the connection; or close it; or reset it."""
        if fault.kind == "stall":
            self.connection.recv(1)
        elif fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()  # at once, as nothing else holds it: without the polite end that follows otherwise
        raise _HangUp


class _ProxyHandler(_Handler):
    def __init__(self, proxy: Proxy, *args: Any) -> None:
        self.proxy = proxy
        super().__init__(*args)

    def do_GET(self) -> None:
        request = self.note("proxy")
        with self.proxy._lock:
            self.proxy._requests.append(request)
        url = urlsplit(self.path)
        own = ("proxy-connection", "proxy-authorization", "connection", "keep-alive")
        upstream = http.client.HTTPConnection(url.hostname or HOST, url.port or 80, timeout=60)
        self.close_connection = True
        try:
            target = url._replace(scheme="", netloc="").geturl()
            kept = {name: value for name, value in request.headers.items() if name not in own}
            upstream.connect()
            self.proxy._listener.adopt(upstream.sock)
            upstream.request(request.method, target, headers=kept)
            response = upstream.getresponse()
        except (OSError, http.client.HTTPException):
            request.status = 502
            self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        else:
            request.status = response.status
            headers = [item for item in response.getheaders() if item[0].lower() not in (*own, "transfer-encoding")]
            lines = [f"HTTP/1.1 {response.status} {response.reason}", *(f"{name}: {value}" for name, value in headers)]
            self.wfile.write("".join(f"{line}\r\n" for line in [*lines, "Connection: close", ""]).encode("latin-1"))
            while piece := response.read1(PIECE):
                request.sent += len(piece)
                self.wfile.write(piece)
        finally:
            upstream.close()

    do_HEAD = do_GET  # noqa: N815


def _meets(fault: Fault, request: Request, answer: _Answer) -> bool:
    """Whether the fault applies to this request: it matches, and there is something to spoil."""
    if (
        (fault.times is not None and fault.used >= fault.times)
        or fault.method not in (None, request.method)
        or fault.origin not in (None, request.origin)
        or not fault.pattern.search(request.path)
    ):
        return False
    whole = answer.data is not None and answer.status in (200, 206) and request.method == "GET"
    size = len(answer.body) if whole else -1
    match fault.kind:
        case "cut" | "stall":
            return fault.after is None or size > fault.after
        case "drip":
            return size > (fault.after or 0)
        case "wrong bytes":
            return answer.start <= fault.position < answer.start + size
        case "wrong length":
            return whole
        case "ignore range" | "wrong content-range":
            return whole and answer.status == 206
        case "gzip":
            return whole and "gzip" in request.headers.get("accept-encoding", "")
        case "no etag":
            return "ETag" in answer.headers
        case "changed":
            return answer.change is not None
    return True


def _served(request: Request, data: bytes, headers: Mapping[str, str], ranges: bool = True) -> _Answer:
    """Return a file, or the requested range of it."""
    common = {name: value for name, value in headers.items() if name != "Content-Range"}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", (request.range or "").replace(" ", ""))
    wanted = request.headers.get("if-range", common.get("ETag")) == common.get("ETag")
    if not ranges or not wanted or request.method != "GET" or asked is None or asked[0] == "bytes=-":
        return _Answer(200, common, data, data)
    first, last = asked[1], asked[2]
    if first and last and int(last) < int(first):
        return _Answer(200, common, data, data)
    start = int(first) if first else max(0, len(data) - int(last))
    if start >= len(data):
        return _Answer(416, {**common, "Content-Range": f"bytes */{len(data)}"})
    return _part(data, start, int(last) + 1 if first and last else len(data), common)


def _part(data: bytes, start: int, end: int, headers: Mapping[str, str]) -> _Answer:
    """Return the bytes from `start` up to `end`, or up to the file's end."""
    body = data[start:end]
    content_range = f"bytes {start}-{start + len(body) - 1}/{len(data)}"
    return _Answer(206, {**headers, "Content-Range": content_range}, body, data, start)


def _json(data: Any) -> _Answer:
    return _Answer(200, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(data).encode())


def _error(status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None) -> _Answer:
    """Return an error, with the code and the message in the hub's headers."""
    answer = _json({"error": message})
    answer.status = status
    answer.headers |= {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
    return answer


def _info(repository: str, known: _Repository, commit: str, files: Mapping[str, _File], blobs: bool) -> dict[str, Any]:
    siblings: list[dict[str, Any]] = []
    for path, file in files.items():
        sibling: dict[str, Any] = {"rfilename": path}
        if blobs:
            sibling |= {"size": len(file.data), "blobId": file.blob}
            if file.lfs:
                sibling["lfs"] = {"sha256": file.sha256, "size": len(file.data), "pointerSize": file.pointer_size}
        siblings.append(sibling)
    return {
        "id": repository,
        "modelId": repository,
        "author": repository.partition("/")[0],
        "sha": commit,
        "private": known.private,
        "gated": "auto" if known.gated else False,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "lastModified": "2024-09-18T00:00:00.000Z",
        "createdAt": "2024-09-18T00:00:00.000Z",
        "siblings": siblings,
    }
