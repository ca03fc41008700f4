"""The hub of the tests: the real client does not notice, and each fault does what it says."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hub_server import HubServer, Origin, Proxy, git_blob

REPOSITORY = "owner/model"
LARGE = random.Random(7).randbytes(300_000)
SMALL = b'{"dim": 64}\n'
FILES = {"config.json": SMALL, "model.safetensors": LARGE, "voices/one.json": b"[1]"}
SHA256 = hashlib.sha256(LARGE).hexdigest()
DIRECT: Any = {"trust_env": False, "verify": False}  # no proxies of this machine; certificates take long to read
RESOLVE = f"/{REPOSITORY}/resolve/main"

# What follows stores its result in `result`; the names of errors stand for them.
CLIENT = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, model_info, snapshot_download
def attempt(call, *args, **kwargs):
    try:
        return call(*args, **kwargs)
    except Exception as error:
        return type(error).__name__
exec(sys.argv[1])
print(json.dumps(result))
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.add(REPOSITORY, FILES)
        yield server


@pytest.fixture
def http() -> Iterator[httpx2.Client]:
    with httpx2.Client(**DIRECT, timeout=5, headers={"Accept-Encoding": "identity"}) as client:
        yield client


def ask(hub: HubServer, home: Path, code: str, **env: str) -> Any:
    """Run code with the real client, in a process whose hub this is, and return its `result`."""
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    inherited = {name: value for name, value in inherited.items() if not name.startswith(("HF_", "HUGGING"))}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", CLIENT, code],
        env={**inherited, **own, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def seen(hub: HubServer) -> list[tuple[str, str, int]]:
    """Origin, method and status of the requests so far, but for the client's first question."""
    return [(r.origin, r.method, r.status) for r in hub.requests if r.path != "/api/agent-harnesses"]


def large(hub: HubServer) -> str:
    """The address of the large file's bytes."""
    return f"{hub.cdn_url}/cdn/{SHA256}?filename=model.safetensors"


def read(http: httpx2.Client, url: str, error: type[Exception], timeout: float = 5.0) -> tuple[httpx2.Response, bytes]:
    """The answer to a GET whose body ends in an error, and what has come of it."""
    got = bytearray()

    def collect(answer: httpx2.Response) -> None:
        for piece in answer.iter_raw():
            got.extend(piece)

    with http.stream("GET", url, timeout=timeout) as answer, pytest.raises(error):
        collect(answer)
    return answer, bytes(got)


def test_the_client_downloads_once(hub: HubServer, tmp_path: Path) -> None:
    code = """
paths = [hf_hub_download("owner/model", name) for name in ("model.safetensors", "config.json", "voices/one.json")]
"""
    paths = ask(hub, tmp_path, code + "result = paths", HF_TOKEN=hub.token)
    assert [Path(path).read_bytes() for path in paths] == [LARGE, SMALL, b"[1]"]
    assert [Path(path).resolve().name for path in paths] == [SHA256, git_blob(SMALL), git_blob(b"[1]")]
    direct = [("hub", "HEAD", 200), ("hub", "GET", 200)]
    assert seen(hub) == [("hub", "HEAD", 302), ("cdn", "GET", 200), *direct, *direct]
    assert sum(request.sent for request in hub.requests if request.method == "HEAD") == 0
    told = [(request.origin, request.headers.get("authorization")) for request in hub.requests[1:]]
    assert set(told) == {("hub", f"Bearer {hub.token}"), ("cdn", None)}

    hub.forget()
    assert ask(hub, tmp_path, code + "result = paths") == paths
    assert [request.method for request in hub.requests] == ["HEAD"] * 3


@pytest.mark.parametrize("resolve_cache", [False, True])
def test_the_client_takes_a_snapshot(tmp_path: Path, resolve_cache: bool) -> None:
    code = """
api = HfApi()
info = model_info("owner/model", revision="refs/pr/1", files_metadata=True)
result = {
    "commit": api.repo_info("owner/model").sha,
    "sizes": {file.rfilename: file.size for file in info.siblings},
    "sha256": {file.rfilename: file.lfs.sha256 for file in info.siblings if file.lfs},
    "files": api.list_repo_files("owner/model"),
    "top": [entry.path for entry in api.list_repo_tree("owner/model")],
    "voices": [entry.path for entry in api.list_repo_tree("owner/model", "voices")],
    "snapshot": snapshot_download("owner/model", revision="refs/pr/1"),
    "file": hf_hub_download("owner/model", "config.json", revision=info.sha),
}
result["again"] = snapshot_download("owner/model", revision=info.sha)
"""
    with HubServer(page=2, resolve_cache=resolve_cache) as hub:
        main = hub.add(REPOSITORY, {**FILES, "voices/two.json": b"[2]"})
        commit = hub.add(REPOSITORY, FILES, "refs/pr/1")
        result = ask(hub, tmp_path, code)
        links = [request for request in hub.requests if "cursor=" in request.path]
    assert (result["commit"], len(main), main == commit) == (main, 40, False)
    assert result["sizes"] == {path: len(data) for path, data in FILES.items()}
    assert result["sha256"] == {"model.safetensors": SHA256}
    assert result["files"] == [*FILES, "voices/two.json"]
    assert result["top"] == ["config.json", "model.safetensors", "voices"]
    assert result["voices"] == ["voices/one.json", "voices/two.json"]
    assert result["snapshot"] == result["again"] == str(tmp_path / "hub/models--owner--model/snapshots" / commit)
    assert {path: (Path(result["snapshot"]) / path).read_bytes() for path in FILES} == FILES
    assert len(links) > 1


def test_the_commits_name_is_that_of_the_contents() -> None:
    with HubServer() as one, HubServer() as two:
        commits = [server.add(REPOSITORY, files) for server in (one, two) for files in (FILES, {"a": b""})]
        assert commits[:2] == commits[2:]
        assert commits[0] != commits[1]
        assert commits[0] != one.add("owner/other", FILES)
        # An earlier commit stays.
        assert httpx2.get(f"{one.url}/{REPOSITORY}/resolve/{commits[0]}/config.json", **DIRECT).content == SMALL


def test_the_clients_errors(hub: HubServer, tmp_path: Path) -> None:
    hub.add("owner/private", {"f": b"private"}, private=True)
    hub.add("owner/gated", {"f": b"gated"}, gated=True)
    code = f"""
def get(repository, name="f", token=False, **kwargs):
    return attempt(lambda: Path(hf_hub_download(repository, name, token=token, **kwargs)).read_text())
right, stranger, wrong = {hub.token!r}, {hub.stranger!r}, "hf_wrong"
result = [
    get("owner/absent"), get("owner/absent", token=right),
    get("owner/private"), get("owner/private", token=stranger), get("owner/private", token=right),
    get("owner/gated"), get("owner/gated", token=stranger), get("owner/gated", token=right),
    get("owner/model", "absent"), get("owner/model", "config.json", revision="absent"),
    get("owner/model", "voices/one.json", token=wrong),
    attempt(HfApi().list_repo_files, "owner/absent"), attempt(HfApi().list_repo_files, "owner/gated"),
    attempt(model_info, "owner/model", revision="absent").__str__(),
    attempt(snapshot_download, "owner/absent"), attempt(snapshot_download, "owner/model", revision="absent"),
]
"""
    assert ask(hub, tmp_path, code) == [
        "RepositoryNotFoundError", "RepositoryNotFoundError",
        "RepositoryNotFoundError", "RepositoryNotFoundError", "private",
        "GatedRepoError", "GatedRepoError", "gated",
        "RemoteEntryNotFoundError", "RevisionNotFoundError",
        "HfHubHTTPError",
        "RepositoryNotFoundError", ["f"],
        "RevisionNotFoundError",
        "RepositoryNotFoundError", "RevisionNotFoundError",
    ]  # fmt: skip
    statuses = [request.status for request in hub.requests if request.method == "HEAD"]
    assert statuses == [401, 404, 401, 404, 200, 401, 403, 200, 404, 404, 401]


def test_the_client_among_faults(hub: HubServer, tmp_path: Path) -> None:
    """What the real client does about them: the reason to have these faults, and to fetch large files in another way."""
    for name in "abcd":
        hub.add(f"owner/{name}", {"model.safetensors": LARGE})
    chunk = 10 << 20  # what the client writes at once; of less it forgets what it had
    huge = LARGE * 36
    assert chunk < len(huge)
    hub.add("owner/huge", {"huge.safetensors": huge})
    cut = hub.fault("/cdn/", "cut", after=chunk + 1000)
    code = """
def get(repository, name="model.safetensors"):
    return attempt(hf_hub_download, repository, name)
"""
    # A clean end in mid-body: it goes on by Range, after a second.
    path = ask(hub, tmp_path, code + 'result = get("owner/huge", "huge.safetensors")')
    assert Path(path).read_bytes() == huge
    assert cut.used == 1
    assert [(r.status, r.range, r.sent) for r in hub.requests if r.origin == "cdn"] == [
        (200, None, chunk + 1000),
        (206, f"bytes={chunk}-", len(huge) - chunk),
    ]

    hub.forget()
    hub.fault("owner/b/", "html")
    hub.fault("/cdn/", "wrong bytes", position=5)
    hub.fault("config.json", "changed", data=b"0" * len(SMALL))
    hub.fault("/cdn/", "cut", after=1000, reset=True)
    html, wrong, changed, reset = ask(
        hub,
        tmp_path,
        code + 'result = [get("owner/b"), get("owner/c"), get("owner/model", "config.json"), get("owner/d")]',
    )
    assert html == "LocalEntryNotFoundError"
    assert [p for p, (a, b) in enumerate(zip(Path(wrong).read_bytes(), LARGE, strict=True)) if a != b] == [5]
    # Other contents under the first ones' name.
    assert (Path(changed).read_bytes(), Path(changed).resolve().name) == (b"0" * len(SMALL), git_blob(SMALL))
    assert reset == "ReadError"  # it does not try again
    assert [(origin, method) for origin, method, _ in seen(hub)] == [
        ("hub", "HEAD"), ("hub", "HEAD"), ("cdn", "GET"), ("hub", "HEAD"), ("hub", "GET"), ("hub", "HEAD"), ("cdn", "GET"),
    ]  # fmt: skip


def test_a_proxy_passes_requests_on(hub: HubServer, tmp_path: Path) -> None:
    hub.fault("/cdn/", "cut", after=1000)
    with Proxy() as proxy:
        code = 'result = [hf_hub_download("owner/model", name) for name in ("model.safetensors", "config.json")]'
        paths = ask(hub, tmp_path, code, HTTP_PROXY=proxy.url)
        assert [Path(path).read_bytes() for path in paths] == [LARGE, SMALL]
        assert [(request.method, request.status) for request in proxy.requests] == [
            (request.method, request.status) for request in hub.requests
        ]
        assert all(request.path.startswith((hub.url, hub.cdn_url)) for request in proxy.requests)
        hub.down("cdn")
        with httpx2.Client(proxy=proxy.url, **DIRECT) as client:
            assert client.get(f"{hub.url}{RESOLVE}/config.json").content == SMALL
            assert client.get(large(hub)).status_code == 502


def test_headers(hub: HubServer, http: httpx2.Client) -> None:
    commit = http.get(f"{hub.url}/api/models/{REPOSITORY}").json()["sha"]
    for answer in (
        http.head(f"{hub.url}{RESOLVE}/model.safetensors"),
        http.get(f"{hub.url}{RESOLVE}/model.safetensors"),
    ):
        assert answer.status_code == 302
        assert answer.headers["X-Repo-Commit"] == commit
        assert answer.headers["X-Linked-Etag"] == f'"{SHA256}"'
        assert answer.headers["X-Linked-Size"] == str(len(LARGE))
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert answer.headers["ETag"] not in ("", f'"{SHA256}"')
        assert answer.headers["Location"].startswith(f"{hub.cdn_url}/cdn/{SHA256}?filename=model.safetensors")
    answer = http.head(f"{hub.url}{RESOLVE}/config.json")
    assert (answer.status_code, answer.headers["ETag"]) == (200, f'"{git_blob(SMALL)}"')
    assert (answer.headers["Content-Length"], answer.headers["X-Repo-Commit"]) == (str(len(SMALL)), commit)
    absent = http.head(f"{hub.url}{RESOLVE}/absent")
    assert (absent.headers["X-Error-Code"], absent.headers["X-Repo-Commit"]) == ("EntryNotFound", commit)
    assert http.get(large(hub), headers={"Authorization": f"Bearer {hub.token}"}).status_code == 400
    assert http.get(f"{hub.cdn_url}/cdn/{'0' * 64}").status_code == 403


def test_git_names_files_so() -> None:
    assert git_blob(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert git_blob(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=5-", 206, 5, None),
        ("bytes=5-9", 206, 5, 10),
        ("bytes=-4", 206, -4, None),
        ("bytes=5-99999999", 206, 5, None),
        ("bytes=99999999-", 416, 0, 0),
        ("bytes=9-5", 200, 0, None),
        ("bytes=0-1,4-5", 200, 0, None),
        ("lines=1-2", 200, 0, None),
    ],
)
@pytest.mark.parametrize("name", ["cdn", "config.json"])
def test_ranges(
    hub: HubServer, http: httpx2.Client, name: str, asked: str, status: int, start: int, end: int | None
) -> None:
    url, data = (large(hub), LARGE) if name == "cdn" else (f"{hub.url}{RESOLVE}/{name}", SMALL)
    answer = http.get(url, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (status, data[start:end])
    if status == 206:
        first = range(len(data))[start]
        assert answer.headers["Content-Range"] == f"bytes {first}-{first + len(answer.content) - 1}/{len(data)}"
    elif status == 416:
        assert answer.headers["Content-Range"] == f"bytes */{len(data)}"
    assert [(r.range, r.status, r.sent) for r in hub.requests] == [(asked, status, len(answer.content))]


def test_a_range_of_what_has_changed_is_the_whole(hub: HubServer, http: httpx2.Client) -> None:
    etag = http.head(large(hub)).headers["ETag"]
    headers = {"Range": "bytes=10-19", "If-Range": etag}
    hub.fault("/cdn/", "changed")
    assert [http.get(large(hub), headers=headers).status_code for _ in range(2)] == [206, 200]
    other = http.get(large(hub))
    assert (other.content, other.headers["ETag"] == etag) == (bytes(byte ^ 0xFF for byte in LARGE), False)


def test_changed_at_the_hub(hub: HubServer, http: httpx2.Client) -> None:
    hub.fault("config.json", "changed", method="HEAD", data=b"new")
    hub.fault("model.safetensors", "changed", method="HEAD")
    for name, new in ("config.json", b"new"), ("model.safetensors", bytes(byte ^ 0xFF for byte in LARGE)):
        before = http.head(f"{hub.url}{RESOLVE}/{name}")
        after = http.get(f"{hub.url}{RESOLVE}/{name}", follow_redirects=True)
        assert after.content == new
        first = (after.history or [after])[0]
        assert all(before.headers[header] != first.headers[header] for header in ("ETag", "X-Repo-Commit"))
    assert http.get(large(hub)).content == LARGE  # an address of the CDN keeps its contents


def test_status(hub: HubServer, http: httpx2.Client) -> None:
    url = f"{hub.url}{RESOLVE}/config.json"
    fault = hub.fault("config", "status", status=429, headers={"Retry-After": "3"}, times=2, method="GET")
    hub.fault("config", "status", status=502)
    assert http.head(url).status_code == 502
    answers = [http.get(url) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [429, 429, 200]
    assert (answers[0].headers["Retry-After"], fault.used) == ("3", 2)
    assert [request.fault for request in hub.requests] == ["status"] * 3 + [None]
    hub.fault("config", "status", status=500, times=None)
    assert [http.get(url).status_code for _ in range(3)] == [500] * 3
    hub.heal()
    assert http.get(url).status_code == 200


@pytest.mark.parametrize("reset", [False, True])
def test_cut(hub: HubServer, http: httpx2.Client, reset: bool) -> None:
    error = httpx2.ReadError if reset else httpx2.RemoteProtocolError
    fault = hub.fault("model", "cut", after=1000, reset=reset)
    assert http.get(f"{hub.url}{RESOLVE}/model.safetensors").status_code == 302  # nothing to cut there
    answer, got = read(http, large(hub), error)
    assert int(answer.headers["Content-Length"]) == len(LARGE)
    assert got == LARGE[:1000] or (reset and LARGE[:1000].startswith(got))
    hub.fault("/cdn/", "cut", reset=reset)
    with pytest.raises(error):
        http.head(large(hub))
    assert [(r.method, r.status, r.sent) for r in hub.requests[1:]] == [("GET", 200, 1000), ("HEAD", 0, 0)]
    assert http.get(large(hub)).content == LARGE
    assert fault.used == 1


def test_stall(http: httpx2.Client) -> None:
    with HubServer() as hub:
        hub.add(REPOSITORY, FILES)
        hub.fault("/cdn/", "stall", after=1000)
        hub.fault("config", "stall", times=None)
        _, got = read(http, large(hub), httpx2.ReadTimeout, timeout=0.2)
        assert got == LARGE[:1000]
        with pytest.raises(httpx2.ReadTimeout):
            http.head(f"{hub.url}{RESOLVE}/config.json", timeout=0.2)
        # The end of the hub is the end of a stall.
        errors: list[Exception] = []

        def wait() -> None:
            try:
                httpx2.get(f"{hub.url}{RESOLVE}/config.json", timeout=30, **DIRECT)
            except httpx2.TransportError as error:
                errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        while len(hub.requests) < 3:
            time.sleep(0.01)
    thread.join(timeout=5)
    assert [type(error) for error in errors] == [httpx2.RemoteProtocolError]


def test_drip(hub: HubServer, http: httpx2.Client) -> None:
    hub.fault("/cdn/", "drip", after=len(LARGE) - 6, rate=20)
    begin = time.monotonic()
    pieces = []
    with http.stream("GET", large(hub)) as answer:
        for piece in answer.iter_raw():
            pieces.append(piece)
    assert b"".join(pieces) == LARGE
    assert 0.3 <= time.monotonic() - begin < 3
    assert len(pieces[-1]) == 1


def test_rate(hub: HubServer, http: httpx2.Client) -> None:
    hub.rate = 1_000_000
    begin = time.monotonic()
    assert http.get(large(hub)).content == LARGE
    assert 0.3 <= time.monotonic() - begin < 3
    hub.rate = None
    assert http.get(large(hub)).content == LARGE


def test_wrong_bytes(hub: HubServer, http: httpx2.Client) -> None:
    fault = hub.fault("model", "wrong bytes", position=150)
    assert http.head(f"{hub.url}{RESOLVE}/model.safetensors").status_code == 302
    assert http.get(large(hub), headers={"Range": "bytes=0-99"}).content == LARGE[:100]
    assert fault.used == 0
    answer = http.get(large(hub), headers={"Range": "bytes=100-199"})
    assert (answer.status_code, answer.headers["Content-Range"]) == (206, f"bytes 100-199/{len(LARGE)}")
    assert [100 + i for i, byte in enumerate(answer.content) if byte != LARGE[100 + i]] == [150]
    hub.fault("config", "wrong bytes", position=len(SMALL) - 1)
    assert http.get(f"{hub.url}{RESOLVE}/config.json").content == SMALL[:-1] + bytes([SMALL[-1] ^ 0xFF])
    assert http.get(large(hub)).content == LARGE


@pytest.mark.parametrize(("by", "expected"), [(-7, LARGE[:-7]), (3, LARGE + bytes(3))])
def test_wrong_length(hub: HubServer, http: httpx2.Client, by: int, expected: bytes) -> None:
    hub.fault("model", "wrong length", by=by, times=2)
    answer = http.get(large(hub))
    assert (answer.content, answer.headers["Content-Length"]) == (expected, str(len(expected)))
    answer = http.get(large(hub), headers={"Range": "bytes=299990-"})
    assert (answer.content, answer.headers["Content-Range"].split("/")[1]) == (expected[299990:], str(len(expected)))
    assert http.get(large(hub)).content == LARGE


def test_ignored_and_wrong_ranges(hub: HubServer, http: httpx2.Client) -> None:
    ignored = hub.fault("/cdn/", "ignore range")
    hub.fault("/cdn/", "wrong content-range", by=-2)
    headers = {"Range": "bytes=10-19"}
    assert http.get(large(hub)).content == LARGE
    assert ignored.used == 0
    answer = http.get(large(hub), headers=headers)
    assert (answer.status_code, answer.content, "Content-Range" in answer.headers) == (200, LARGE, False)
    answer = http.get(large(hub), headers=headers)
    assert (answer.status_code, answer.content) == (206, LARGE[8:18])
    assert answer.headers["Content-Range"] == f"bytes 8-17/{len(LARGE)}"
    assert http.get(large(hub), headers=headers).content == LARGE[10:20]


def test_html(hub: HubServer, http: httpx2.Client) -> None:
    hub.fault("", "html", times=3)
    for answer in (
        http.head(f"{hub.url}{RESOLVE}/model.safetensors"),
        http.get(large(hub)),
        http.get(f"{hub.url}/api/x"),
    ):
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/html")
        assert "ETag" not in answer.headers
    assert answer.text.startswith("<!DOCTYPE html>")


def test_gzip(hub: HubServer, http: httpx2.Client) -> None:
    fault = hub.fault("config", "gzip")
    url = f"{hub.url}{RESOLVE}/config.json"
    assert http.get(url).content == SMALL
    assert fault.used == 0
    with http.stream("GET", url, headers={"Accept-Encoding": "gzip", "Range": "bytes=2-3"}) as answer:
        assert gzip.decompress(b"".join(answer.iter_raw())) == SMALL
        assert (answer.status_code, "Content-Length" in answer.headers) == (200, False)
        assert answer.headers["ETag"] == f'W/"{git_blob(SMALL)}"'


def test_redirects(hub: HubServer, http: httpx2.Client) -> None:
    hub.fault("config", "redirect loop", times=None)
    with pytest.raises(httpx2.TooManyRedirects):
        http.get(f"{hub.url}{RESOLVE}/config.json", follow_redirects=True)
    hub.fault("model", "dead redirect", times=2)
    answer = http.head(f"{hub.url}{RESOLVE}/model.safetensors")
    assert (answer.status_code, answer.headers["X-Linked-Etag"]) == (302, f'"{SHA256}"')
    assert answer.headers["Location"].startswith(hub.dead_url)
    with pytest.raises(httpx2.ConnectError):
        http.get(large(hub), follow_redirects=True)
    with pytest.raises(httpx2.ConnectError):
        http.get(hub.dead_url)


def test_no_etag(hub: HubServer, http: httpx2.Client) -> None:
    fault = hub.fault("", "no etag", times=3)
    http.get(f"{hub.url}/api/models/{REPOSITORY}")
    assert fault.used == 0
    urls = [f"{hub.url}{RESOLVE}/model.safetensors", f"{hub.url}{RESOLVE}/config.json", large(hub)]
    for url in urls:
        assert not {"etag", "x-linked-etag"} & set(http.head(url).headers)
    assert all("etag" in http.head(url).headers for url in urls)


def test_slow_headers(hub: HubServer, http: httpx2.Client) -> None:
    hub.fault("config", "slow headers", seconds=0.3)
    begin = time.monotonic()
    assert http.get(f"{hub.url}{RESOLVE}/config.json").content == SMALL
    assert 0.3 <= time.monotonic() - begin < 3


def test_down_and_up(hub: HubServer, http: httpx2.Client) -> None:
    urls = [f"{hub.url}{RESOLVE}/config.json", large(hub)]
    addresses = (hub.url, hub.cdn_url)
    cases: list[tuple[Origin | None, list[bool]]] = [
        (None, [False, False]),
        ("cdn", [True, False]),
        ("hub", [False, True]),
    ]
    for origin, expected in cases:
        assert all(http.get(url).status_code == 200 for url in urls)  # a connection that would be used again
        hub.down(origin)
        for url, reachable in zip(urls, expected, strict=True):
            if reachable:
                assert http.get(url).status_code == 200
            else:
                with pytest.raises(httpx2.TransportError):
                    http.get(url)
                with pytest.raises(httpx2.ConnectError):
                    httpx2.get(url, **DIRECT)
        hub.up()
        assert (hub.url, hub.cdn_url) == addresses


def test_nothing_is_left() -> None:
    before = set(threading.enumerate())
    with HubServer() as hub, Proxy() as proxy:
        hub.add(REPOSITORY, FILES)
        hub.rate = 1000
        hub.fault("config", "stall", times=None)
        urls = [large(hub)] * 5 + [f"{hub.url}{RESOLVE}/config.json"] * 5

        def get(url: str, through: str | None) -> None:
            with (
                pytest.raises(httpx2.TransportError),
                httpx2.Client(proxy=through, **DIRECT, timeout=30) as client,
            ):
                client.get(url)

        threads = [threading.Thread(target=get, args=(url, way)) for url in urls for way in (None, proxy.url)]
        for thread in threads:
            thread.start()
        while len(hub.requests) < len(threads):
            time.sleep(0.01)
        begin = time.monotonic()
    assert time.monotonic() - begin < 5
    for thread in threads:
        thread.join(timeout=5)
    assert set(threading.enumerate()) == before
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(hub.url, **DIRECT)


def test_many_at_once(hub: HubServer) -> None:
    def get() -> None:
        with httpx2.Client(**DIRECT, timeout=30) as client:
            for start in range(0, len(LARGE), 30_000):
                answer = client.get(large(hub), headers={"Range": f"bytes={start}-{start + 29_999}"})
                assert answer.content == LARGE[start : start + 30_000]
                done.append(start)

    done: list[int] = []
    threads = [threading.Thread(target=get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == len(hub.requests) == 80
    assert sum(request.sent for request in hub.requests) == 8 * len(LARGE)
