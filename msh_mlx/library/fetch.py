"""Fetches files from the hub into Hugging Face's cache: resumed, checked, several at a time.

The package huggingface-hub tells where a file is, its commit and its hash, and knows addresses, tokens, proxies and the cache.
The contents are fetched here, by HTTP requests for ranges, so that the bytes that have come are kept when the process ends:
huggingface-hub's own downloads begin again from the start.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, BinaryIO, TypeVar
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

# First: without it, Hugging Face's library may not be imported.
from .settings import SettingsError, check_settings, constants  # isort: split

import httpx2
from filelock import FileLock, Timeout
from huggingface_hub import get_hf_file_metadata, get_session, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from ..errors import InputError, MshError, UnreachableError
from ..system.words import human_size
from . import cache
from .cache import NOBODY, Watch
from .catalogue import HubFile

if TYPE_CHECKING:
    from huggingface_hub.file_download import HfFileMetadata

PARALLEL = 4  # files at a time
RETRIES = 5  # attempts in a row that bring nothing
PAUSE = 1.0  # seconds before the first retry; doubled each time, up to eight times as long
PATIENCE = 10.0  # seconds without a byte until a connection is given up
CONNECT = 5.0  # seconds to connect to the hub
LONGEST_WAIT = 60.0  # seconds; if the hub asks for a longer wait, the user is told instead
SLOWEST = 1024.0, 30.0  # bytes a second over so many seconds: a slower connection is given up and tried again
MARGIN = 1 << 28  # bytes that are left free on the disk

_PIECE = 1 << 20
_PROGRESS = 1 << 16  # bytes; an attempt that brings fewer counts as failed
_ETAG = re.compile(r"[\w.-]+", re.ASCII)
_BUSY = (408, 429, 500, 502, 503, 504)  # HTTP statuses that may go away: the hub is slow, busy or in trouble
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub has it: `etag` is the hash of its contents, `size` is in bytes."""

    file: HubFile
    commit: str
    etag: str
    size: int

    @property
    def pointer(self) -> Path:
        """The path where programs will find it."""
        return cache.pointer(self.file, self.commit)

    @property
    def blob(self) -> Path:
        """The path where its contents will be."""
        return cache.blob_folder(self.file.repository) / self.etag

    @property
    def partial(self) -> Path:
        """The path of its contents while they are incomplete."""
        return cache.partial(self.file.repository, self.etag)

    @property
    def missing(self) -> int:
        """Bytes that have not come yet."""
        if self.pointer.is_file() or self.blob.is_file():
            return 0
        return max(0, self.size - (self.partial.stat().st_size if self.partial.is_file() else 0))


def host() -> str:
    """Return the host name of the hub, which `HF_ENDPOINT` chooses."""
    return urlsplit(constants.ENDPOINT).netloc or constants.ENDPOINT


# ---- what the hub has ----------------------------------------------------------------------------------------------------


def look_up(files: Sequence[HubFile], watch: Watch = NOBODY) -> list[RemoteFile]:
    """Ask the hub for the commits, hashes and sizes of files, of several files at a time.

    Raises
    ------
    UnreachableError
        The hub does not answer, or `HF_HUB_OFFLINE` is set. SettingsError: the environment is wrong.
    InputError
        The hub has no such file, or does not give it to this user, or the file's hash is not that of the reference.
    MshError
        The hub's answer makes no sense.
    """
    _check_surroundings()
    job = _Job(watch)
    return job.run(lambda file: _retried(lambda: _look_up(file), job, file.path), files)


def list_files(repository: str, revision: str, watch: Watch = NOBODY) -> list[str]:
    """Ask the hub for the paths of a repository's files. Errors are those of `look_up`."""
    from huggingface_hub import HfApi

    _check_surroundings()
    job = _Job(watch)

    def ask() -> list[str]:
        with _errors(HubFile(repository, "", revision)):
            info = HfApi(endpoint=constants.ENDPOINT).model_info(repository, revision=revision, timeout=CONNECT)
            return [sibling.rfilename for sibling in info.siblings or []]

    (found,) = job.run(lambda _: _retried(ask, job, repository), [None])
    return found


def _check_surroundings() -> None:
    if constants.is_offline_mode():
        raise UnreachableError("HF_HUB_OFFLINE is set, so that nothing is fetched")
    cache.check_cache()
    check_settings()
    if not re.fullmatch(r"[!-~]*", get_token() or ""):
        raise SettingsError(
            "The token for Hugging Face has characters that no token has",
            "set HF_TOKEN to it as it was given to you, or use 'hf auth login'",
        )


def _look_up(file: HubFile) -> RemoteFile:
    url = hf_hub_url(file.repository, file.path, revision=file.revision)
    with _errors(file):
        metadata: HfFileMetadata = get_hf_file_metadata(url, timeout=CONNECT)
    commit, etag, size = metadata.commit_hash, metadata.etag, metadata.size
    if not (commit and cache.is_commit(commit) and etag and _ETAG.fullmatch(etag)):
        raise MshError(
            f"{host()} does not answer like a hub of Hugging Face: {file.path} has no commit or no hash there",
            "look whether the network wants a login, or HF_ENDPOINT or a proxy names something else",
        )
    if size is None:
        raise MshError(f"{host()} does not say how large {file.path} is", "try again later")
    if file.sha256 and cache.is_sha256(etag) and etag != file.sha256:
        raise InputError(
            f"{file.path} in {file.repository} has the sha256 {etag} now, and {file.sha256} is expected",
            "name the commit that it is of as the revision",
        )
    return RemoteFile(file, commit, etag, size)


class _Transient(Exception):  # noqa: N818 - it is retried, and only then an error
    """An error that may go away: try again in `after` seconds (None: as usual). In the end `error` is raised."""

    def __init__(self, error: MshError, after: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


@contextlib.contextmanager
def _errors(file: HubFile) -> Iterator[None]:
    """Turn the exceptions of huggingface-hub and its HTTP client into our own."""
    repository, where = file.repository, host()
    try:
        yield
    except GatedRepoError:
        raise InputError(
            f"{repository} wants its conditions to be accepted: open {constants.ENDPOINT}/{repository}, accept them, and "
            "give your token with HF_TOKEN or 'hf auth login'."
        ) from None
    except RepositoryNotFoundError:
        raise InputError(
            f"There is no repository {repository} on {where}, or it is not public: check its name, or give your token "
            "with HF_TOKEN or 'hf auth login'."
        ) from None
    except RevisionNotFoundError:
        raise InputError(f"The repository {repository} has no revision {file.revision}.") from None
    except RemoteEntryNotFoundError:
        raise InputError(f"The repository {repository} has no file {file.path} at {file.revision}.") from None
    except HfHubHTTPError as error:
        raise _http_error(error, file) from None
    except OfflineModeIsEnabled:
        raise UnreachableError("HF_HUB_OFFLINE is set, so that nothing is fetched") from None
    except httpx2.ProxyError as error:
        raise UnreachableError(f"{_proxy() or 'The proxy'} refuses to connect to {where} ({_brief(error)})") from None
    except httpx2.ConnectTimeout:
        raise UnreachableError(f"{where} does not answer{_through_proxy()}") from None
    except httpx2.ConnectError as error:
        if "CERTIFICATE" in str(error).upper():
            raise UnreachableError(f"{where} cannot be trusted ({_brief(error)})") from None
        raise UnreachableError(f"{where} cannot be reached{_through_proxy()} ({_brief(error)})") from None
    except httpx2.TooManyRedirects:
        raise MshError(f"{where} redirects {file.path} in a circle", "try again later") from None
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, ValueError, ImportError) as error:
        if not (proxy := _proxy()):
            raise
        why = "SOCKS needs the package socksio" if isinstance(error, ImportError) else _brief(error)
        raise SettingsError(
            f"{proxy} is not a proxy that can be used ({why})", "give one like http://HOST:PORT, or unset it"
        ) from None
    except httpx2.TransportError as error:
        raise _Transient(MshError(f"The connection to {where} broke ({_brief(error)})", "try again later")) from None


def _proxy() -> str | None:
    """Return the variable in the environment that names the hub's proxy, and its value without secrets; None: no proxy."""
    parts = urlsplit(constants.ENDPOINT)
    if proxy_bypass(parts.hostname or ""):
        return None
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            if value := os.environ.get(variable):
                return f"{variable}={re.sub('[^/]*@', '', value)}"
    return None


def _through_proxy() -> str:
    proxy = _proxy()
    return f" through the proxy that {proxy} names" if proxy else ""


def _http_error(error: HfHubHTTPError, file: HubFile) -> Exception:
    response, where = error.response, host()
    status = response.status_code
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return InputError(
            f"{where} refuses {file.path} of {file.repository} ({status}): check the token in HF_TOKEN, or get one that may "
            "read it."
        )
    if status not in _BUSY:
        return MshError(f"{where} answers {status} to the request for {file.path}", "try again later")
    told = response.headers.get("Retry-After", "")
    after = float(told) if re.fullmatch(r"\d{1,9}", told) else None
    when = "later" if after is None else f"in {after:.0f} s"
    what = "has had too many requests" if status == HTTPStatus.TOO_MANY_REQUESTS else "has trouble"
    sorry = MshError(f"{where} {what} ({status})", f"try again {when}")
    return sorry if after is not None and after > LONGEST_WAIT else _Transient(sorry, after)


def _brief(error: BaseException) -> str:
    text = " ".join(re.sub(r"^\[Errno -?\d+\] ", "", str(error)).split()).rstrip(".")
    return text[:200] or type(error).__name__


def _retried(ask: Callable[[], T], job: _Job, what: str) -> T:
    """Call `ask` a few times, with growing pauses, until it succeeds."""
    for attempt in range(3):
        try:
            return ask()
        except _Transient as trouble:
            if attempt == 2:
                raise trouble.error from None
            job.pause(trouble, attempt, what)
    raise AssertionError


# ---- threads -------------------------------------------------------------------------------------------------------------


class _Job:
    """Work on several threads. The calling thread waits for them and reports. The first error ends all of them."""

    def __init__(self, watch: Watch, total: int = 0, done: int = 0) -> None:
        self._watch = watch
        self._total = total
        self._done = done
        self._lock = threading.Lock()
        self._said: SimpleQueue[str] = SimpleQueue()
        self._error: BaseException | None = None
        self._stopped = threading.Event()

    # On the threads that work.

    def add(self, count: int) -> None:
        """Count bytes that have come; a negative number for bytes that were thrown away."""
        with self._lock:
            self._done += count

    def say(self, sentence: str) -> None:
        self._said.put(sentence)

    def check(self) -> None:
        """End this thread if the job is over."""
        if self._stopped.is_set():
            raise _StoppedError

    def wait(self, seconds: float) -> None:
        self._stopped.wait(seconds)
        self.check()

    def pause(self, trouble: _Transient, attempt: int, what: str) -> None:
        """Wait before the next attempt, longer each time. Tell the user if it is long."""
        seconds = trouble.after if trouble.after is not None else PAUSE * min(2**attempt, 8)
        if seconds >= 4:
            self.say(f"{what}: {trouble.error.what}; trying again in {seconds:.0f} s.")
        self.wait(seconds)

    # On the calling thread.

    def run(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Call `work` with every item, on at most `PARALLEL` threads. Wait for all, and return the results in order."""
        waiting: SimpleQueue[tuple[int, T]] = SimpleQueue()
        for numbered in enumerate(items):
            waiting.put(numbered)
        results: dict[int, R] = {}

        def loop() -> None:
            try:
                while not self._stopped.is_set():
                    index, item = waiting.get_nowait()
                    results[index] = work(item)
            except (Empty, _StoppedError):
                pass
            except BaseException as error:
                with self._lock:
                    self._error = self._error or error
                self._stopped.set()

        # A thread that waits for the network must not keep the process from ending.
        threads = [
            threading.Thread(target=loop, name="msh-fetch", daemon=True) for _ in range(min(PARALLEL, len(items)))
        ]
        try:
            for thread in threads:
                thread.start()
            while (alive := [thread for thread in threads if thread.is_alive()]) and self._error is None:
                self._report()
                alive[0].join(0.05)
            self._report()
        finally:
            self._stopped.set()
            # Wait until the threads have noticed: then the last bytes are on disk.
            deadline = perf_counter() + 0.5
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(0.0, deadline - perf_counter()))
        if self._error is not None:
            raise self._error
        return [results[index] for index in range(len(items))]

    def _report(self) -> None:
        self._watch.check()
        with contextlib.suppress(Empty):
            while True:
                self._watch.say(self._said.get_nowait())
        if self._total:
            self._watch.progress(self._done, self._total)


class _StoppedError(Exception):
    """The job is over. The thread in which it is raised ends."""


# ---- the contents --------------------------------------------------------------------------------------------------------


def fetch(remotes: Sequence[RemoteFile], watch: Watch = NOBODY) -> list[Path]:
    """Fetch the missing bytes of files that `look_up` found. Return the files' paths in the cache, in the same order.

    Bytes that have come stay on disk whatever happens, and the next call goes on from there. Before a file gets its name, its
    hash is compared with the hub's, and with the reference's sha256 if there is one. If it differs, the file is removed and
    fetched once more.

    Raises
    ------
    MshError
        The disk has no room, the cache cannot be written, a file came damaged twice, or trouble with the hub or the network
        does not go away.
    InputError
        The hub does not give the file to this user (any more).
    """
    check_space(remotes)
    whole = {remote.blob: remote for remote in remotes}
    total = sum(remote.size for remote in whole.values())
    came = [remote for remote in whole.values() if remote.missing]
    job = _Job(watch, total, total - sum(remote.missing for remote in came))

    def work(remote: RemoteFile) -> None:
        try:
            _fetch(remote, job)
        except OSError as error:
            raise _disk_error(error, remote) from None

    job.run(work, list(whole.values()))
    for remote in remotes:
        _link(remote)
    cache.note_verified(remote.pointer for remote in came)
    return [remote.pointer for remote in remotes]


def check_space(remotes: Sequence[RemoteFile]) -> None:
    """Raise MshError if the disk has no room for the missing bytes."""
    need = sum({remote.blob: remote.missing for remote in remotes}.values())
    folder = cache.cache_folder()
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if need and need + MARGIN > free:
        raise MshError(
            f"There is no room for {human_size(need)} in {folder}: {human_size(free)} are free",
            "make room, or name a folder on another disk with HF_HOME",
        )


def _disk_error(error: OSError, remote: RemoteFile) -> MshError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MshError(
            f"The disk with {cache.cache_folder()} is full",
            f"make room and try again: what came of {remote.file.path} is kept",
        )
    return MshError(f"{error.filename or cache.cache_folder()} cannot be written ({error.strerror or error}).")


def _fetch(remote: RemoteFile, job: _Job) -> None:
    """Fetch one file into the cache."""
    if remote.pointer.is_file():
        return
    remote.blob.parent.mkdir(parents=True, exist_ok=True)
    # Other programs take the same lock, so that no two fetch the same file.
    locks = cache.cache_folder() / ".locks" / cache.repository_folder(remote.file.repository).name
    locks.mkdir(parents=True, exist_ok=True)
    missing = remote.missing
    with _locked(locks / f"{remote.etag}.lock", remote, job):
        if remote.blob.is_file():  # another program has fetched it meanwhile
            job.add(missing)
        elif not _found_elsewhere(remote, job):
            _download(remote, job)


@contextlib.contextmanager
def _locked(path: Path, remote: RemoteFile, job: _Job) -> Iterator[None]:
    lock, begin, told = FileLock(path), perf_counter(), False
    while True:
        try:
            lock.acquire(timeout=0.2)
            break
        except Timeout:
            job.check()
        except NotImplementedError:  # a file system without locks
            break
        if not told and perf_counter() - begin > 2:
            job.say(f"Another program is fetching {remote.file.path}; waiting for it.")
            told = True
    try:
        yield
    finally:
        lock.release()


def _found_elsewhere(remote: RemoteFile, job: _Job) -> bool:
    """Take a file with the same contents from another repository in the cache. Return False if there is none."""
    if not cache.is_sha256(remote.etag):
        return False
    for other in cache.cache_folder().glob(f"models--*/blobs/{remote.etag}"):
        if other.is_file() and other.stat().st_size == remote.size:
            digest = cache.Digest(remote.etag, remote.size)
            with other.open("rb") as file:
                _read(file, digest, job)
            if digest.agrees():
                had = remote.size - remote.missing
                try:
                    os.link(other.resolve(), remote.blob)
                except OSError:
                    shutil.copyfile(other, remote.partial)
                    remote.partial.replace(remote.blob)
                remote.partial.unlink(missing_ok=True)
                job.add(remote.size - had)
                return True
    return False


def _read(file: BinaryIO, digest: cache.Digest, job: _Job) -> int:
    """Feed the rest of a file to `digest`; return how many bytes that was."""
    count = 0
    while piece := file.read(_PIECE):
        job.check()
        digest.update(piece)
        count += len(piece)
    return count


def _download(remote: RemoteFile, job: _Job) -> None:
    name, sha256 = remote.file.path, remote.file.sha256
    for last in (False, True):
        digest = _download_once(remote, job)
        if digest.agrees() and (not sha256 or digest.sha256 == sha256):
            remote.partial.replace(remote.blob)
            return
        remote.partial.unlink()
        job.add(-remote.size)
        what = f"{name} came damaged (its hash is not the one that it should have) and was removed"
        if last:
            raise MshError(f"{what}, twice", "try again later, or over another network")
        job.say(f"{what}; fetching it once more.")
    raise AssertionError


def _download_once(remote: RemoteFile, job: _Job) -> cache.Digest:
    """Bring the partial file to its full size, with as many requests as that takes; return its digest."""
    with remote.partial.open("a+b", buffering=0) as file:
        file.seek(0)
        digest = cache.Digest(remote.etag, remote.size)
        have = _read(file, digest, job)
        if have > remote.size:
            file.truncate(0)
            job.add(-remote.size)
            digest, have = cache.Digest(remote.etag, remote.size), 0
        failures = 0
        while have < remote.size:
            before = have
            try:
                for piece in _pieces(remote, have, job):
                    if piece is None:  # from the beginning
                        file.truncate(0)
                        job.add(-have)
                        digest, have = cache.Digest(remote.etag, remote.size), 0
                        continue
                    if have + len(piece) > remote.size:
                        raise _Transient(MshError(f"{host()} sends more of {remote.file.path} than there is of it."))
                    file.write(piece)
                    digest.update(piece)
                    have += len(piece)
                    job.add(len(piece))
                if have < remote.size:
                    raise _Transient(MshError(f"The connection to {host()} broke", "try again: what has come is kept"))
            except _Transient as trouble:
                failures = 1 if have - before >= _PROGRESS else failures + 1
                if failures > RETRIES:
                    raise trouble.error from None
                job.pause(trouble, failures - 1, remote.file.path)
    return digest


def _pieces(remote: RemoteFile, begin: int, job: _Job) -> Iterator[bytes | None]:
    """Request a file from byte `begin` on, and yield it in pieces. If the answer begins at byte 0 instead, yield None first."""
    url = hf_hub_url(remote.file.repository, remote.file.path, revision=remote.commit)
    headers = build_hf_headers()
    headers |= {"Range": f"bytes={begin}-", "Accept-Encoding": "identity"}
    timeout = httpx2.Timeout(PATIENCE, connect=CONNECT)
    try:
        with (
            _errors(remote.file),
            get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response,
        ):
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise _Transient(MshError(f"{host()} has less of {remote.file.path} than it says", "try again later"))
            if response.is_error:
                response.read()
            hf_raise_for_status(response)
            if _begins_at(response, remote, begin) != begin:
                yield None
            yield from _watched(response.iter_raw(), job)
    except UnreachableError as error:
        # In the middle of a file it is worth waiting for the network to come back.
        raise _Transient(MshError(str(error), "try again: what has come is kept")) from None


def _begins_at(response: httpx2.Response, remote: RemoteFile, asked: int) -> int:
    """Return the byte of the file at which an answer begins. Raise if it is not part of the file, but a login page, say."""
    ranged = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
    if response.status_code == HTTPStatus.PARTIAL_CONTENT and ranged:
        begin, _, size = map(int, ranged.groups())
    else:
        begin, size = 0, int(response.headers.get("Content-Length", -1))
        if response.status_code == HTTPStatus.PARTIAL_CONTENT:
            size = -1
    if size != remote.size or begin not in (0, asked):
        raise _Transient(
            MshError(
                f"{response.url.host} answers with something else in place of {remote.file.path}",
                "look whether the network wants a login, and try again",
            )
        )
    return begin


def _watched(pieces: Iterator[bytes], job: _Job) -> Iterator[bytes]:
    """Pass pieces on. Give up if they come too slowly."""
    least, window = SLOWEST
    begin, count = perf_counter(), 0
    for piece in pieces:
        job.check()
        yield piece
        count += len(piece)
        if (seconds := perf_counter() - begin) > window:
            if count < least * seconds:
                raise _Transient(MshError(f"{host()} sends next to nothing", "try again later: what has come is kept"))
            begin, count = perf_counter(), 0


def _link(remote: RemoteFile) -> None:
    """Link a blob under its name in the snapshot, and note the commit of the revision."""
    try:
        if not remote.pointer.is_file():
            remote.pointer.parent.mkdir(parents=True, exist_ok=True)
            remote.pointer.unlink(missing_ok=True)
            try:
                remote.pointer.symlink_to(os.path.relpath(remote.blob, remote.pointer.parent))
            except FileExistsError:
                pass  # another program was faster
            except OSError:  # a file system without links
                remote.blob.replace(remote.pointer)
        if not cache.is_commit(remote.file.revision):
            reference = cache.repository_folder(remote.file.repository) / "refs" / remote.file.revision
            if cache.commit_of(remote.file.repository, remote.file.revision) != remote.commit:
                reference.parent.mkdir(parents=True, exist_ok=True)
                temporary = reference.with_name(f".{reference.name}.{os.getpid()}.msh")
                temporary.write_text(remote.commit, encoding="ascii")
                temporary.replace(reference)
    except OSError as error:
        raise _disk_error(error, remote) from None
