"""`msh-mlx serve --ray`: many processes on Ray Serve, each with its own device, model and conversations."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
from .serve import Program, choose_models, own_names

if TYPE_CHECKING:
    from ..net.asgi_face import AsgiServer
    from ..net.server import Server

_NAME = "msh-mlx"  # of the application, of its deployment, and of what it keeps in Ray
_REPORT_EVERY = 1.0  # seconds
_REPORT_LASTS = 10.0  # seconds, after which a process that reports no more counts as gone
_GOODBYE = 4.0  # seconds for all conversations to end
_LOOK = 0.25  # seconds between two looks at signals
_BESIDES = 128  # requests besides conversations that a process may have at once: for pages and figures
_UPSCALE = 2.0  # seconds for which more processes must be wanted before one is started


def serve_on_ray(program: Program, port: int, static: Path | None) -> int:
    """Serve with Ray until a signal comes or no process can be started, which is raised."""
    try:
        import ray
        from ray import serve
    except ImportError:
        raise InputError("--ray needs Ray, which is not installed", "pip install 'msh-mlx[ray]' installs it") from None
    args, signals = program.args, program.signals
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # Ray writes there, too: what the processes say
    _connect(args.ray)
    options: dict[str, Any] = {"host": args.host or "0.0.0.0", "port": port, "request_timeout_s": None}
    if args.ssl:
        options |= {"ssl_keyfile": str(args.ssl / "key.pem"), "ssl_certfile": str(args.ssl / "cert.pem")}
    if (status := serve.status()).proxies or status.applications:
        raise InputError(
            f"Ray Serve is running in this cluster already, with {listed(status.applications or ['nothing in it'])}",
            "`serve shutdown` ends it",
        )
    try:
        with signals.waiting():
            serve.start(proxy_location="EveryNode", http_options=options, logging_config={"enable_access_log": False})
            try:
                serve.run(application(args, program.names, static), name=_NAME, route_prefix="/")
            except RuntimeError as error:
                raise MshError(f"Ray could not start the server: {error}") from None
        program.say_where(port, static)
        while True:
            signals.check()
            sleep(_LOOK)
    finally:
        with signals.holding():
            _end()
            ray.shutdown()


def _connect(address: str) -> None:
    import ray

    # Its usage reports would go to another server.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"namespace": _NAME, "logging_level": "warning"}
    if address == LOCAL:
        ray.init(include_dashboard=False, **options)
        return
    try:
        ray.init(address, **options)
    except (ConnectionError, ValueError) as error:
        what = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"There is no Ray cluster at {address} ({what})", "`ray start --head` starts one") from None


def _end() -> None:
    """Tell all clients that the server ends, and end what was started."""
    import ray
    from ray import serve

    with contextlib.suppress(Exception):  # whatever is gone already needs no ending
        board = _board()
        ray.get(board.end.remote("The server is shutting down."), timeout=_GOODBYE)
        deadline = monotonic() + _GOODBYE
        while monotonic() < deadline and ray.get(board.talking.remote(), timeout=_GOODBYE):
            sleep(_LOOK)
        ray.kill(board)
    with contextlib.suppress(Exception):
        serve.shutdown()


def application(args: argparse.Namespace, names: Sequence[str], static: Path | None) -> Any:
    """Make the application of Ray Serve. `names` are those of the machine on which the program was started."""
    from ray import serve
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

    def build() -> AsgiServer:
        return _build(args, names, static)

    class Replica:
        """A process of the server: what Ray asks of it."""

        app: AsgiServer

        def check_health(self) -> None:
            """Raise an error if the model has failed; Ray then ends this process and starts another one."""
            if failure := self.app.server.failure:
                raise RuntimeError(f"The model failed: {failure.error}")

        def record_routing_stats(self) -> dict[str, float]:
            """Say how many places are free, for `Router`."""
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


def _build(args: argparse.Namespace, names: Sequence[str], static: Path | None) -> AsgiServer:
    """Load the models, on the event loop of the process, and make the application."""
    from ..net.asgi_face import AsgiServer

    signals = Signals()
    here, addresses = own_names(args.host)
    with display(args, signals) as shown:
        chosen = choose_models(args, signals)
        program = Program(args, chosen, signals, shown, None, sorted({*names, *here}), addresses)
        server, load = program.make(static)
        load()
    server.ready = True
    server.all_figures = partial(_all_figures, server)
    return AsgiServer(server, _report(server))


async def _report(server: Server) -> None:
    """Tell this process's figures again and again, and end its conversations when the program ends."""
    from ray import serve

    own = serve.get_replica_context().replica_id.unique_id
    with short_turns():
        while True:
            with contextlib.suppress(Exception):  # the board is gone with its machine; another one takes its place
                sentence = await _board().report.remote(own, server.own_figures(), server.places()["taken"])
                if sentence:
                    await server.end(sentence)
            await asyncio.sleep(_REPORT_EVERY)


async def _all_figures(server: Server) -> bytes:
    """Return the figures of all processes, told apart by the label `replica`; without the others', our own."""
    from ray import serve

    own = serve.get_replica_context().replica_id.unique_id
    texts: Mapping[str, bytes] = {}
    with contextlib.suppress(Exception):
        texts = await asyncio.wait_for(_board().figures.remote(), _REPORT_EVERY)
    return merged({**texts, own: server.own_figures()})


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


def _board() -> Any:
    """Return the board, on whatever machine it is."""
    import ray

    options = {"name": _NAME, "namespace": _NAME, "get_if_exists": True, "num_cpus": 0, "lifetime": "detached"}
    return ray.remote(Board).options(**options).remote()
