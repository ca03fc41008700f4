"""Fetching from a hub on the loopback: files arrive whole whatever happens on the way, or a sentence says why they cannot."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer, Proxy, serve
from huggingface_hub import constants, hf_hub_download, scan_cache_dir

from msh_mlx.errors import InputError, MshError, UnreachableError
from msh_mlx.library import cache as hf_cache
from msh_mlx.library import fetch
from msh_mlx.library.cache import Watch
from msh_mlx.library.catalogue import HubFile
from msh_mlx.library.fetch import look_up

LARGE = np.random.default_rng(0).bytes(3_000_000)
SMALL = b'{"dim": 64}'
FILES = {"model.safetensors": LARGE, "folder/config.json": SMALL, "tokenizer.model": LARGE[:200_000]}


class Seen:
    """What somebody who watches gets to see."""

    def __init__(self, check=lambda: None):
        self.progress = []
        self.said = []
        self.watch = Watch(lambda done, total: self.progress.append((done, total)), self.said.append, check)


def get(*paths, repository="us/model", revision="main", seen=None, **options):
    watch = (seen or Seen()).watch
    files = [HubFile(repository, path, revision, **options) for path in paths]
    found = fetch.fetch(look_up(files, watch), watch)
    for file, path in zip(files, found, strict=True):
        assert hf_cache.find(file) == path
    return [path.read_bytes() for path in found]


def of_files(server):
    """The requests for files, and not for what huggingface-hub asks besides."""
    return [request for request in server.requests if request.origin == "cdn" or "/resolve" in request.path]


def bodies(server):
    """How many bytes of files the server has sent."""
    return sum(request.sent for request in of_files(server) if request.status in (200, 206))


def partials():
    return hf_cache.partials("us/model")


# ---- what comes, and where it lies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [False, True])
def test_files_come_and_other_programs_find_them(monkeypatch, cache, relative):
    with HubServer(resolve_cache=relative) as server:
        serve(server, monkeypatch)
        commit = server.add("us/model", FILES)
        seen = Seen()
        assert get(*FILES, seen=seen) == list(FILES.values())
        assert seen.progress[-1] == (sum(map(len, FILES.values())),) * 2
        assert seen.said == []
        assert bodies(server) == sum(map(len, FILES.values()))
        assert not partials()
        server.forget()
        # What huggingface-hub sees of it: its own download needs no body, and its scan finds nothing to complain of.
        for path, data in FILES.items():
            assert Path(hf_hub_download("us/model", path, cache_dir=cache)).read_bytes() == data
        assert bodies(server) == 0
        scan = scan_cache_dir(cache)
        assert not scan.warnings
        (repository,) = scan.repos
        (revision,) = repository.revisions
        assert (repository.repo_id, revision.commit_hash, revision.refs) == ("us/model", commit, {"main"})
        assert {file.file_path.relative_to(revision.snapshot_path).as_posix() for file in revision.files} == set(FILES)
        assert all(file.file_path.is_symlink() for file in revision.files)


def test_what_other_programs_fetched_is_not_fetched_again(server, tmp_path):
    server.add("us/model", FILES)
    for path in FILES:
        hf_hub_download("us/model", path, cache_dir=constants.HF_HUB_CACHE)
    server.forget()
    assert get(*FILES) == list(FILES.values())
    assert bodies(server) == 0


def test_nothing_is_asked_for_what_is_on_disk(server):
    server.add("us/model", FILES)
    get(*FILES)
    server.forget()
    assert hf_cache.find(HubFile("us/model", "model.safetensors")).read_bytes() == LARGE
    assert not server.requests


def test_a_file_that_another_repository_has(server):
    server.add("us/model", FILES)
    server.add("us/other", {"a.safetensors": LARGE})
    get(*FILES)
    server.forget()
    seen = Seen()
    assert get("a.safetensors", repository="us/other", seen=seen) == [LARGE]
    assert bodies(server) == 0
    assert seen.progress[-1] == (len(LARGE),) * 2
    # Removing one leaves the other.
    blob = hf_cache.blob_of(hf_cache.find(HubFile("us/model", "model.safetensors")))
    blob.unlink()
    assert hf_cache.find(HubFile("us/other", "a.safetensors")).read_bytes() == LARGE


def test_a_damaged_file_of_another_repository_is_of_no_use(server):
    server.add("us/model", FILES)
    server.add("us/other", {"a.safetensors": LARGE})
    get(*FILES)
    blob = hf_cache.blob_of(hf_cache.find(HubFile("us/model", "model.safetensors")))
    blob.write_bytes(LARGE[:-1] + b"x")
    assert get("a.safetensors", repository="us/other") == [LARGE]


@pytest.mark.parametrize("revision", ["v1", "refs/pr/1", "a-branch"])
def test_revisions(server, revision):
    server.add("us/model", FILES)
    commit = server.add("us/model", {"model.safetensors": LARGE[::-1]}, revision)
    assert get("model.safetensors", revision=revision) == [LARGE[::-1]]
    assert get("model.safetensors", revision=commit) == [LARGE[::-1]]
    assert get("model.safetensors") == [LARGE]


def test_a_branch_that_has_moved(server):
    server.add("us/model", FILES)
    get(*FILES)
    server.add("us/model", FILES | {"tokenizer.model": LARGE[5:200_000]})
    server.forget()
    assert get(*FILES)[2] == LARGE[5:200_000]
    assert bodies(server) == 200_000 - 5  # what is as before is linked


def test_several_files_at_a_time(server, monkeypatch):
    files = {f"file-{i}": LARGE[i : i + 100_000] for i in range(fetch.PARALLEL + 2)}
    server.add("us/model", files)
    download, first, together = fetch._download, iter(range(fetch.PARALLEL)), threading.Barrier(fetch.PARALLEL)

    def waiting(*args):
        if next(first, None) is not None:
            together.wait(10)  # fails if one file is fetched after the other
        download(*args)

    monkeypatch.setattr(fetch, "_download", waiting)
    assert get(*files) == list(files.values())


def test_an_empty_file_and_the_same_file_twice(server):
    server.add("us/model", {"empty": b"", "a.bin": LARGE, "b.bin": LARGE})
    assert get("empty", "a.bin", "b.bin", "a.bin") == [b"", LARGE, LARGE, LARGE]
    assert bodies(server) == len(LARGE)


# ---- what goes wrong on the way ------------------------------------------------------------------------------------------


FAULTS = {
    "cut cleanly": {"kind": "cut", "after": 1_000_000},
    "reset": {"kind": "cut", "after": 1_000_000, "reset": True},
    "cut before the answer": {"kind": "cut", "method": "GET"},
    "stalled": {"kind": "stall", "after": 1_000_000},
    "drips": {"kind": "drip", "after": 500_000, "rate": 200.0},
    "500": {"kind": "status", "status": 500},
    "502": {"kind": "status", "status": 502, "method": "GET"},
    "503": {"kind": "status", "status": 503, "method": "HEAD"},
    "429": {"kind": "status", "status": 429, "headers": {"Retry-After": "0"}},
    "429 at the CDN": {"kind": "status", "status": 429, "origin": "cdn"},
    "shorter": {"kind": "wrong length", "by": -1000},
    "longer": {"kind": "wrong length", "by": 1000},
    "web page": {"kind": "html", "method": "GET"},
    "dead redirect": {"kind": "dead redirect", "method": "GET"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_goes_away(server, monkeypatch, fault):
    monkeypatch.setattr(fetch, "PATIENCE", 0.3)
    monkeypatch.setattr(fetch, "SLOWEST", (1024.0, 0.3))
    server.add("us/model", FILES)
    planned = server.fault("model.safetensors", **FAULTS[fault])
    seen = Seen()
    assert get(*FILES, seen=seen) == list(FILES.values())
    assert planned.used == 1
    assert seen.progress[-1][0] == seen.progress[-1][1]
    if "after" in FAULTS[fault] and not FAULTS[fault].get("reset"):
        # It went on where it was; what the system had taken but not sent counts, too.
        assert bodies(server) < sum(map(len, FILES.values())) + 200_000


@pytest.mark.parametrize("kind", ["ignore range", "wrong content-range"])
def test_a_range_that_is_not_what_was_asked_for(server, kind):
    server.add("us/model", FILES)
    server.fault("model.safetensors", "cut", after=1_000_000)
    planned = server.fault("model.safetensors", kind)
    assert get("model.safetensors") == [LARGE]
    assert planned.used == 1


def test_many_faults_in_a_row(server):
    server.add("us/model", FILES)
    for i in range(20):
        server.fault("model.safetensors", "cut", after=80_000 + i)
    server.fault("model.safetensors", "status", status=503, times=3, method="GET")
    assert get("model.safetensors") == [LARGE]


def test_seeded_trouble(server, monkeypatch):
    monkeypatch.setattr(fetch, "PATIENCE", 0.2)
    rng = np.random.default_rng(1)
    server.add("us/model", FILES)
    kinds = [
        {'kind': "cut"}, {'kind': "cut", 'reset': True}, {'kind': "stall"}, {'kind': "status", 'status': 503},
        {'kind': "ignore range"}, {'kind': "wrong content-range"}, {'kind': "html", 'method': "GET"}, {'kind': "dead redirect"},
    ]  # fmt: skip
    for _ in range(25):
        fault = dict(kinds[rng.integers(len(kinds))])
        if fault["kind"] in ("cut", "stall"):
            fault["after"] = int(rng.integers(1, 700_000))
        server.fault(str(rng.choice(list(FILES))), **fault)
    monkeypatch.setattr(fetch, "RETRIES", 30)
    assert get(*FILES) == list(FILES.values())


def test_damage_is_noticed_and_the_file_fetched_again(server):
    server.add("us/model", FILES)
    server.fault("model.safetensors", "wrong bytes", position=1_234_567)
    server.fault("config.json", "wrong bytes", position=3)
    seen = Seen()
    assert get(*FILES, seen=seen) == list(FILES.values())
    assert sorted(seen.said) == [
        "folder/config.json came damaged (its hash is not the one that it should have) and was removed; fetching it once more.",
        "model.safetensors came damaged (its hash is not the one that it should have) and was removed; fetching it once more.",
    ]
    assert seen.progress[-1] == (sum(map(len, FILES.values())),) * 2


def test_damage_that_stays(server):
    server.add("us/model", FILES)
    server.fault("model.safetensors", "wrong bytes", position=7, times=None)
    with pytest.raises(MshError, match=r"model.safetensors came damaged .* and was removed, twice; try again later"):
        get("model.safetensors")
    assert not partials()
    assert hf_cache.find(HubFile("us/model", "model.safetensors")) is None
    server.heal()
    assert get("model.safetensors") == [LARGE]


def test_the_sha256_of_the_catalogue(server):
    server.add("us/model", FILES)
    right, wrong = hashlib.sha256(LARGE).hexdigest(), hashlib.sha256(b"").hexdigest()
    assert get("model.safetensors", sha256=right) == [LARGE]
    with pytest.raises(InputError, match=f"has the sha256 {right} now, and {wrong} is expected"):
        get("model.safetensors", sha256=wrong)
    # The hub does not say the sha256 of a small file.
    assert get("folder/config.json", sha256=hashlib.sha256(SMALL).hexdigest()) == [SMALL]


def test_a_small_file_with_another_sha256(server):
    server.add("us/model", FILES)
    with pytest.raises(MshError, match=r"config\.json came damaged"):
        get("folder/config.json", sha256=hashlib.sha256(b"").hexdigest())


def test_contents_that_change_between_two_requests(server):
    server.add("us/model", FILES)
    server.fault("model.safetensors", "changed", method="HEAD")
    assert get("model.safetensors") == [LARGE]  # of the commit that was looked up


# ---- what does not go away -----------------------------------------------------------------------------------------------


def refused(kind, what, *paths, **options):
    with pytest.raises(kind) as caught:
        get(*(paths or FILES), **options)
    sentence = str(caught.value)
    assert re.search(what, sentence), sentence
    assert sentence.isprintable()
    return sentence


def test_what_the_hub_does_not_have(server, monkeypatch):
    server.add("us/model", FILES)
    refused(InputError, r"There is no repository us/none on 127.0.0.1:\d+, or it is not public", repository="us/none")
    refused(InputError, "The repository us/model has no revision v9", revision="v9")
    refused(InputError, "The repository us/model has no file none.bin at main", "none.bin")


def test_what_is_not_for_everybody(server, monkeypatch):
    server.add("us/private", FILES, private=True)
    server.add("us/gated", FILES, gated=True)
    refused(InputError, "There is no repository us/private .*HF_TOKEN", repository="us/private")
    monkeypatch.setenv("HF_TOKEN", server.stranger)
    refused(InputError, "us/gated wants its conditions to be accepted: open http.*us/gated", repository="us/gated")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused(InputError, "check the token in HF_TOKEN|give your token", repository="us/gated")
    monkeypatch.setenv("HF_TOKEN", server.token)
    for repository in ("us/private", "us/gated"):
        assert get(*FILES, repository=repository) == list(FILES.values())
    # The token is for the hub alone.
    assert {r.headers.get("authorization") for r in of_files(server) if r.origin == "cdn"} == {None}
    assert any(r.headers.get("authorization") for r in of_files(server) if r.origin == "hub")


LASTING = {
    "hub in trouble": ({"kind": "status", "status": 503}, MshError, r"has trouble \(503\); try again later"),
    "too many requests": (
        {"kind": "status", "status": 429, "headers": {"Retry-After": "3600"}},
        MshError,
        r"has had too many requests \(429\); try again in 3600 s",
    ),
    "odd status": ({"kind": "status", "status": 418}, MshError, "answers 418"),
    "web page in place of everything": ({"kind": "html"}, MshError, "does not answer like a hub .* wants a login"),
    "web page in place of the file": (
        {"kind": "html", "method": "GET"},
        MshError,
        "something else in place of model.safe",
    ),
    "no hash": ({"kind": "no etag", "method": "HEAD"}, MshError, "does not answer like a hub"),
    "redirects": ({"kind": "redirect loop", "method": "GET"}, MshError, "redirects model.safetensors in a circle"),
    "cut": ({"kind": "cut", "after": 10}, MshError, "broke"),
    "stalled": ({"kind": "stall", "after": 10}, MshError, "broke"),
    "shorter": ({"kind": "wrong length", "by": -5}, MshError, "something else in place of"),
    "longer": ({"kind": "wrong length", "by": 5}, MshError, "something else in place of"),
    "drips": ({"kind": "drip", "rate": 100.0}, MshError, "sends next to nothing"),
    "CDN refuses": (
        {"kind": "status", "status": 403, "origin": "cdn"},
        InputError,
        r"refuses model.safetensors .*\(403\)",
    ),
    "CDN gone": ({"kind": "dead redirect", "method": "GET"}, MshError, "cannot be reached"),
}


@pytest.mark.parametrize("case", LASTING)
def test_a_fault_that_stays(server, monkeypatch, case):
    monkeypatch.setattr(fetch, "PATIENCE", 0.2)
    monkeypatch.setattr(fetch, "CONNECT", 0.5)
    monkeypatch.setattr(fetch, "SLOWEST", (1024.0, 0.2))
    monkeypatch.setattr(fetch, "RETRIES", 2)
    fault, kind, what = LASTING[case]
    server.add("us/model", FILES)
    server.fault("model.safetensors", times=None, **fault)
    begin = time.perf_counter()
    refused(kind, what)
    assert time.perf_counter() - begin < 10
    assert hf_cache.find(HubFile("us/model", "model.safetensors")) is None
    server.heal()
    assert get(*FILES) == list(FILES.values())


def test_a_web_page_does_not_cost_what_was_there(server, monkeypatch):
    monkeypatch.setattr(fetch, "RETRIES", 1)
    server.add("us/model", FILES)
    server.fault("model.safetensors", "cut", after=1_000_000)
    server.fault("model.safetensors", "html", times=None, origin="cdn")
    refused(MshError, "something else in place of model.safetensors", "model.safetensors")
    (partial,) = partials()
    assert partial.stat().st_size == 1_000_000
    server.heal()
    server.forget()
    assert get("model.safetensors") == [LARGE]
    assert bodies(server) == len(LARGE) - 1_000_000


def test_no_network(server, monkeypatch):
    server.add("us/model", FILES)
    server.down()
    begin = time.perf_counter()
    sentence = refused(UnreachableError, r"127.0.0.1:\d+ cannot be reached \(Connection refused\)")
    assert "Errno" not in sentence
    assert time.perf_counter() - begin < 3
    server.up()
    assert get(*FILES) == list(FILES.values())


def test_a_hub_that_does_not_answer(server, monkeypatch):
    monkeypatch.setattr(fetch, "CONNECT", 0.3)
    server.add("us/model", FILES)
    server.fault(".", "stall", times=None)
    begin = time.perf_counter()
    refused(MshError, "broke")
    assert time.perf_counter() - begin < 5


def test_the_network_goes_in_the_middle(server, monkeypatch):
    monkeypatch.setattr(fetch, "PAUSE", 0.1)
    server.add("us/model", FILES)
    server.rate = 3e6
    threading.Timer(0.3, server.down).start()
    threading.Timer(0.7, server.up).start()
    assert get("model.safetensors") == [LARGE]
    assert bodies(server) < 2 * len(LARGE)


def test_offline_mode(server, monkeypatch):
    server.add("us/model", FILES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(UnreachableError, "HF_HUB_OFFLINE is set")
    with pytest.raises(UnreachableError):
        fetch.list_files("us/model", "main")
    assert not server.requests


def test_lists_of_files(server):
    server.add("us/model", FILES)
    assert sorted(fetch.list_files("us/model", "main")) == sorted(FILES)
    with pytest.raises(InputError, match="no revision v2"):
        fetch.list_files("us/model", "v2")
    with pytest.raises(InputError, match="no repository us/none"):
        fetch.list_files("us/none", "main")


# ---- the disk ------------------------------------------------------------------------------------------------------------


def test_no_room(server, monkeypatch):
    server.add("us/model", FILES)
    monkeypatch.setattr(fetch, "MARGIN", 1 << 60)
    server.forget()
    refused(MshError, r"There is no room for 3.2 MB in .*: [\d.]+ GB are free; make room, or .*HF_HOME")
    assert bodies(server) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="a small disk is made with tmpfs")
@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="mounting is for root")
def test_a_disk_that_fills(server, monkeypatch, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(disk / "cache"))
        monkeypatch.setattr(fetch, "MARGIN", -(1 << 30))
        server.add("us/model", FILES)
        refused(
            MshError,
            "is full; make room and try again: what came of model.safetensors is kept",
            "model.safetensors",
        )
        (partial,) = partials()
        assert partial.stat().st_size > 1_000_000
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        server.forget()
        assert get("model.safetensors") == [LARGE]
        assert bodies(server) < 2_000_000
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_cache_that_is_a_file(server, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    server.add("us/model", FILES)
    refused(MshError, "cannot be written")


def test_a_partial_file_that_is_wrong_or_too_long(server):
    server.add("us/model", FILES)
    (remote,) = look_up([HubFile("us/model", "model.safetensors")])
    remote.partial.parent.mkdir(parents=True)
    for junk in (LARGE + b"more", b"x" * 1000, LARGE):
        remote.partial.write_bytes(junk)
        assert get("model.safetensors") == [LARGE]
        hf_cache.pointer(remote.file, remote.commit).unlink()
        remote.blob.unlink()


# ---- processes -----------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from msh_mlx.library.fetch import fetch, look_up
from msh_mlx.library.cache import Watch
from msh_mlx.library.catalogue import HubFile
watch = Watch(lambda done, total: print(done, flush=True), lambda said: print(said, flush=True))
fetch(look_up([HubFile("us/model", path) for path in sys.argv[1:]], watch), watch)
"""


def start(server, *paths, **environment):
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_CACHE": constants.HF_HUB_CACHE, **environment}
    command = [sys.executable, "-c", PROGRAM, *paths]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_process_that_ends_leaves_what_the_next_one_goes_on_with(server, number):
    server.add("us/model", FILES)
    server.rate = 3e6
    process = start(server, "model.safetensors")
    for line in process.stdout:
        if int(line) > 1_000_000:
            break
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode != 0
    (partial,) = partials()
    have = partial.stat().st_size
    assert 1_000_000 < have < len(LARGE)
    assert partial.read_bytes() == LARGE[:have]
    server.forget()
    server.rate = None
    assert get("model.safetensors") == [LARGE]
    assert bodies(server) == len(LARGE) - have


def test_two_processes_fetch_a_file_once(server):
    server.add("us/model", FILES)
    server.rate = 2e6
    processes = [start(server, *FILES) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
    assert get(*FILES) == list(FILES.values())
    assert bodies(server) == sum(map(len, FILES.values()))


def test_waiting_for_another_process_is_said_and_can_be_stopped(server):
    server.add("us/model", FILES)
    server.rate = 1e5
    process = start(server, "model.safetensors")
    for line in process.stdout:
        if int(line) > 50_000:
            break

    class EnoughError(Exception):
        pass

    begin = time.perf_counter()

    def check():
        if seen.said:
            raise EnoughError

    seen = Seen(check)
    with pytest.raises(EnoughError):
        get("model.safetensors", seen=seen)
    assert seen.said == ["Another program is fetching model.safetensors; waiting for it."]
    assert time.perf_counter() - begin < 5
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    "fault", [{"kind": "stall"}, {"kind": "stall", "after": 1000}, {"kind": "drip", "after": 100_000}]
)
def test_stopping_takes_no_time(server, fault):
    server.add("us/model", FILES)
    server.fault("model.safetensors", method="GET", **fault)
    begin = time.perf_counter()

    class EnoughError(Exception):
        pass

    def check():
        if time.perf_counter() - begin > 0.5:
            raise EnoughError

    with pytest.raises(EnoughError):
        get("model.safetensors", seen=Seen(check))
    assert time.perf_counter() - begin < 3


def test_the_environment_is_respected(server, tmp_path):
    server.add("us/private", FILES, private=True)
    code = (
        "import json, sys\nfrom msh_mlx.library.fetch import fetch, look_up\nfrom msh_mlx.library.catalogue import HubFile\n"
        "print(json.dumps([str(p) for p in fetch(look_up([HubFile('us/private', 'model.safetensors')]))]))"
    )
    with Proxy() as proxy:
        environment = {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": server.token,
            "HTTP_PROXY": proxy.url,
            "NO_PROXY": "",
            "no_proxy": "",
        }
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.lower().endswith("_proxy") and name[:3] != "HF_"
        }
        result = subprocess.run(
            [sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, result.stderr
        (path,) = json.loads(result.stdout)
        assert Path(path).is_relative_to(tmp_path / "home" / "hub")
        assert Path(path).read_bytes() == LARGE
        assert len(proxy.requests) >= 3  # the question, the hub's answer, the CDN's
    assert {r.headers.get("authorization") for r in of_files(server) if r.origin == "hub"} == {f"Bearer {server.token}"}
