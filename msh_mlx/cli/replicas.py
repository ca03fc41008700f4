"""`msh-mlx serve --ray`: many processes on Ray Serve, each with its own device, model and conversations."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import math
import os
import re
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from ..errors import InputError, MshError
from ..system.signals import Signals
from ..system.threads import short_turns
from ..system.words import listed
from .options import display
from .ray_options import LOCAL
from .server_program import Program, choose_models, own_names

if TYPE_CHECKING:
    from ..net.asgi_face import AsgiServer
    from ..net.server import Server

_NAME = "msh-mlx"  # of the application, of its deployment, and of what it keeps in Ray
_REPORT_EVERY = 1.0  # seconds
_REPORT_LASTS = 10.0  # seconds, after which a process that reports no more counts as gone
_END_WITHIN = 4.0  # seconds for all conversations to end
_REACHED_WITHIN = 5.0  # seconds for a cluster to be reached
_ASK_EVERY = 2.0  # seconds between two looks at how the processes are
_MOST_AHEAD = 1 << 24  # bytes that a client may send ahead of what was read: Ray takes whatever comes
_LOOK = 0.25  # seconds between two looks at signals
_BESIDES = 128  # requests besides conversations that a process may have at once: for pages and figures
_UPSCALE = 2.0  # seconds for which more processes must be wanted before one is started


def serve_on_ray(program: Program, port: int, static: Path | None) -> int:
    """Serve with Ray until a signal comes or no process can be started, which is raised."""
    # Ray reads these when it is imported, or hands them to its processes: no address of a client is believed but that of its
    # connection, unless --trusted-proxy names who tells it; lines that look alike are all shown; and no usage is reported.
    environment = {"FORWARDED_ALLOW_IPS": "", "RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        from ray import serve
    except ImportError:
        raise InputError("--ray needs Ray, which is not installed", "pip install 'msh-mlx[ray]' installs it") from None
    args, signals = program.args, program.signals
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # Ray writes there, too: what the processes say
    run = secrets.token_hex(4)
    with signals.waiting():
        _connect(args.ray)
    if (status := serve.status()).proxies or status.applications:
        ray.shutdown()
        raise InputError(
            f"Ray Serve is running in this cluster already, with {listed(status.applications or ['nothing in it'])}",
            "`serve shutdown` ends it",
        )
    options: dict[str, Any] = {"host": args.host or "0.0.0.0", "port": port, "request_timeout_s": None}
    if args.ssl:
        options |= {"ssl_keyfile": str(args.ssl / "key.pem"), "ssl_certfile": str(args.ssl / "cert.pem")}
    try:
        with signals.waiting():
            try:
                serve.start(
                    proxy_location="EveryNode", http_options=options, logging_config={"enable_access_log": False}
                )
                serve.run(application(program, static, run), name=_NAME, route_prefix="/")
            except RuntimeError as error:
                raise MshError(f"Ray could not start the server: {error}") from None
        program.say_where(port, static)
        return _watch(program)
    finally:
        with signals.holding():
            _end(run)
            ray.shutdown()


def _connect(address: str) -> None:
    """Start Ray on this machine, or join the cluster at an address. Raise InputError if there is none."""
    import ray

    options: dict[str, Any] = {"namespace": _NAME, "logging_level": "warning"}
    if address == LOCAL:
        options["include_dashboard"] = False
    elif match := re.fullmatch(r"(?:ray://)?\[?([^\]]+)\]?:([0-9]{1,5})", address):
        # Ray itself would try for minutes.
        with contextlib.suppress(OSError), socket.create_connection((match[1], int(match[2])), _REACHED_WITHIN):
            match = None
        if match:
            raise InputError(f"There is no Ray cluster at {address}", "`ray start --head` starts one")
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        what = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"There is no Ray cluster at {address} ({what})", "`ray start --head` starts one") from None
    finally:
        signal.signal(signal.SIGTERM, before)  # Ray would end the process without a word to the clients


def _watch(program: Program) -> int:
    """Wait for a signal, which is raised; say when the server on Ray gets into trouble, and when it is out of it."""
    from ray import serve

    healthy, asked = True, monotonic()
    while True:
        program.signals.check()
        sleep(_LOOK)
        if monotonic() - asked < _ASK_EVERY:
            continue
        asked = monotonic()
        with contextlib.suppress(Exception):  # the head of the cluster is busy; it is asked again
            application = serve.status().applications.get(_NAME)
            if (application is not None and application.status.value != "UNHEALTHY") != healthy:
                healthy = not healthy
                trouble = "A process of the server has failed, and Ray starts another one."
                program.say("All processes of the server are well again." if healthy else trouble)


def _end(run: str) -> None:
    """Tell all clients that the server ends, and end what was started."""
    import ray
    from ray import serve

    deadline = monotonic() + _END_WITHIN
    board = None
    try:
        board = _board(run)
        ray.get(board.end.remote("The server is shutting down."), timeout=_END_WITHIN)
        while monotonic() < deadline and ray.get(board.talking.remote(), timeout=_END_WITHIN):
            sleep(_LOOK)
    except Exception:  # whatever is gone already needs no ending
        pass
    finally:
        with contextlib.suppress(Exception):
            ray.kill(board)
        with contextlib.suppress(Exception):
            serve.delete(_NAME)
            if not serve.status().applications:
                serve.shutdown()


def application(program: Program, static: Path | None, run: str) -> Any:
    """Make the application of Ray Serve. `run` is a name that no other run of the program has."""
    from ray import serve
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

    args, names, folder = _pinned(program), program.names, Path.cwd()

    def build() -> AsgiServer:
        return _build(args, names, folder, static, run)

    class Replica:
        """A process of the server: what Ray asks of it."""

        app: AsgiServer

        def check_health(self) -> None:
            """Raise an error if the model has failed; Ray then ends this process and starts another one."""
            if failure := self.app.server.failure:
                raise RuntimeError(f"The model failed: {failure.error}")

        def record_routing_stats(self) -> dict[str, float]:
            """Say how many places are free, for the router."""
            return self.app.server.places()

        def record_autoscaling_stats(self) -> dict[str, float]:
            """Say how many places there are and how many are taken, for `wanted`."""
            return self.app.server.places()

    least, most = args.replicas
    count: dict[str, Any] = {"num_replicas": least}
    if least < most:
        count = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=least,
                max_replicas=most,
                metrics_interval_s=_REPORT_EVERY,
                look_back_period_s=2 * _REPORT_EVERY,
                upscale_delay_s=_UPSCALE,
                downscale_delay_s=args.scale_down_after,
                policy=AutoscalingPolicy(policy_function=wanted),
            )
        }
    deployment = serve.deployment(
        serve.ingress(build)(Replica),
        name=_NAME,
        max_ongoing_requests=args.max_connections + _BESIDES,
        ray_actor_options={"num_cpus": args.replica_cpus, "num_gpus": args.replica_gpus},
        graceful_shutdown_timeout_s=args.drain,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=2.0,
        request_router_config=RequestRouterConfig(
            request_router_class="msh_mlx.cli.replica_router:Router", request_routing_stats_period_s=_REPORT_EVERY
        ),
        **count,
    )
    return deployment.bind()


def _pinned(program: Program) -> argparse.Namespace:
    """Return the options, with the model that was chosen here: a process that measures beside others may choose another."""
    args, chosen = argparse.Namespace(**vars(program.args)), program.chosen.conversation
    if chosen and chosen.selection:
        args.variant = chosen.name
    return args


def wanted(context: Any) -> tuple[int, dict[str, Any]]:
    """Return how many processes there should be: with a free place among them, by what each has measured.

    `context` is Ray's `AutoscalingContext`.
    """
    told: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics or {}
    places = [value for value in told.get("places", {}).values() if value > 0]
    if not places:
        return context.target_num_replicas, {}
    taken = sum(told.get("taken", {}).values())
    number = math.ceil((taken + 1) / (sum(places) / len(places)))
    low, high = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return min(max(number, low), high), {}


# ---- in a process of the server ------------------------------------------------------------------------------------------


def _build(args: argparse.Namespace, names: Sequence[str], folder: Path, static: Path | None, run: str) -> AsgiServer:
    """Load the models, on the event loop of the process, and make the application.

    `names` are those of the machine on which the program was started, in `folder`: names of files may begin there.
    """
    from ..net.asgi_face import AsgiServer

    if folder.is_dir():
        os.chdir(folder)
    signals = Signals()
    here, addresses = own_names(args.host)
    with display(args, signals) as shown:
        chosen = choose_models(args, signals)
        program = Program(args, chosen, signals, shown, None, sorted({*names, *here}), addresses)
        server, load = program.make(static)
        load()
    server.ready = True
    board = _OtherProcesses(run, server)
    server.all_figures = board.figures
    return AsgiServer(server, beside=lambda: _report(server, board), most_ahead=_MOST_AHEAD)


async def _report(server: Server, board: _OtherProcesses) -> None:
    """Tell this process's figures again and again; end its conversations when the program ends, or the model has failed."""
    with short_turns():
        while not server.failure:
            if sentence := await board.report():
                await server.end(sentence)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(server.failed.wait(), _REPORT_EVERY)
    server.note_error(server.failure.error)
    await server.end("The model failed; the conversation is over.")


class _OtherProcesses:
    """The way from one process to the board. The board may be gone with its machine; then another one takes its place."""

    def __init__(self, run: str, server: Server) -> None:
        from ray import serve

        self._run, self._server = run, server
        self._own = serve.get_replica_context().replica_id.unique_id
        self._board: Any = None

    async def report(self) -> str | None:
        """Leave this process's figures; return why all end, or None."""
        server = self._server
        taken = server.places()["taken"]
        sentence: str | None = await self._ask(
            lambda board: board.report.remote(self._own, server.own_figures(), taken)
        )
        return sentence

    async def figures(self) -> bytes:
        """Return the figures of all processes, told apart by the label `replica`; if there is no board, our own."""
        texts = await self._ask(lambda board: board.figures.remote()) or {}
        return merged({**texts, self._own: self._server.own_figures()})

    async def _ask(self, what: Callable[[Any], Any]) -> Any:
        try:
            # Finding it waits for Ray, and must not hold up the conversations.
            self._board = self._board or await asyncio.to_thread(_board, self._run)
            return await asyncio.wait_for(what(self._board), 2 * _REPORT_EVERY)
        except Exception:
            self._board = None
            return None


def merged(texts: Mapping[str, bytes]) -> bytes:
    """Merge figures in the format of Prometheus; each sample gets the label `replica`, the name of its text."""
    families: dict[str, Metric] = {}
    for replica, text in sorted(texts.items()):
        for family in text_string_to_metric_families(text.decode()):
            kept = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                kept.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))

    class All:
        def collect(self) -> list[Metric]:
            return list(families.values())

    registry = CollectorRegistry()
    registry.register(All())
    return generate_latest(registry)


# ---- what all processes share --------------------------------------------------------------------------------------------


class Board:
    """Where the processes of the server leave their figures, and read whether the program ends. It is an actor of Ray."""

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._reports: dict[str, tuple[float, bytes, float]] = {}
        self._ending: str | None = None

    def report(self, replica: str, figures: bytes, taken: float) -> str | None:
        """Take a process's figures, and how many talk or wait there; return why all end, or None."""
        self._reports[replica] = self._now(), figures, taken
        return self._ending

    def figures(self) -> dict[str, bytes]:
        """Return the figures of all processes that still report."""
        return {replica: figures for replica, (_, figures, _) in self._fresh().items()}

    def talking(self) -> float:
        """Return how many talk or wait in all."""
        return sum(taken for _, _, taken in self._fresh().values())

    def end(self, sentence: str) -> None:
        """Let all processes end their conversations, with this sentence."""
        self._ending = sentence

    def _fresh(self) -> dict[str, tuple[float, bytes, float]]:
        since = self._now() - _REPORT_LASTS
        self._reports = {name: report for name, report in self._reports.items() if report[0] >= since}
        return self._reports


def _board(run: str) -> Any:
    """Return the board of this run, on whatever machine it is."""
    import ray

    name = f"{_NAME}-{run}"
    options = {"name": name, "namespace": _NAME, "get_if_exists": True, "num_cpus": 0, "lifetime": "detached"}
    return ray.remote(Board).options(**options).remote()
