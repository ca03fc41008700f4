"""A server on Ray, as far as it goes without Ray; tests/world/test_ray.py runs it."""

from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from msh_mlx.cli import replicas, serve
from msh_mlx.errors import InputError


def checked(*options):
    args = serve.parser().parse_args(["--demo", *options])
    serve.check(args)
    return args


def test_options():
    args = checked("--ray")
    assert (args.ray, args.replicas, args.replica_cpus, args.replica_gpus) == ("local", (1, 1), 1, 0)
    assert (args.drain, args.scale_down_after) == (3600, 60)
    args = checked("--ray", "10.0.0.1:6379", "--replicas", "2-8", "--replica-gpus", "1")
    assert (args.ray, args.replicas, args.replica_gpus) == ("10.0.0.1:6379", (2, 8), 1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--replicas", "2"], "--replicas is only for --ray; give that, too, or leave it out."),
        (["--drain", "5"], "--drain is only for --ray; give that, too, or leave it out."),
        (["--ray", ""], "--ray has an empty address; give one, or --ray alone for this machine."),
        (["--ray", "--replicas", "0"], "--replicas 0 is not a number of processes; give one such as 2, or 1-4."),
        (["--ray", "--replicas", "4-2"], "--replicas 4-2 is not a number of processes; give one such as 2, or 1-4."),
        (["--ray", "--replicas", "x"], "--replicas x is not a number of processes; give one such as 2, or 1-4."),
        (["--ray", "--wyoming", "0"], "--wyoming is not served with --ray; run another server for it."),
    ],
)
def test_options_that_do_not_fit(options, sentence):
    with pytest.raises(InputError) as caught:
        checked(*options)
    assert str(caught.value) == sentence


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    program = SimpleNamespace(args=checked("--ray"), signals=None)
    with pytest.raises(InputError, match=r"--ray needs Ray, which is not installed; pip install 'msh-mlx\[ray\]'"):
        replicas.serve_on_ray(program, 9998, None)


@pytest.mark.parametrize(
    ("places", "taken", "now", "expected"),
    [
        ([4], [0], 1, 1),
        ([4], [3], 1, 1),  # one is free
        ([4], [4], 1, 2),  # none is
        ([4, 4], [4, 3], 2, 2),
        ([4, 4], [4, 6], 2, 3),  # two of them wait in a line
        ([4, 4, 4], [1, 1, 1], 3, 1),
        ([4, 4, 4], [4, 4, 4], 3, 3),  # more than may be
        ([1, 3], [1, 1], 2, 2),  # they differ
        ([], [], 2, 2),  # nothing is known yet
        ([0, 0], [0, 0], 2, 2),  # nothing is loaded yet
    ],
)
def test_there_are_as_many_processes_as_leave_one_place_free(places, taken, now, expected):
    context = SimpleNamespace(
        aggregated_metrics={"places": dict(enumerate(places)), "taken": dict(enumerate(taken))},
        target_num_replicas=now,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=3,
    )
    assert replicas.wanted(context) == (expected, {})


def test_figures_of_several_processes_are_told_apart():
    one = b"# HELP msh_sessions now\n# TYPE msh_sessions gauge\nmsh_sessions 2.0\n"
    one += b'# HELP msh_errors_total e\n# TYPE msh_errors_total counter\nmsh_errors_total{kind="host"} 3.0\n'
    two = one.replace(b" 2.0", b" 5.0") + b"# TYPE msh_waiting gauge\nmsh_waiting 1.0\n"
    text = replicas.merged({"b": two, "a": one}).decode()
    assert text.count("# TYPE msh_sessions gauge") == 1
    values = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values == {
        ("msh_sessions", ("replica", "a")): 2,
        ("msh_sessions", ("replica", "b")): 5,
        ("msh_errors_total", ("kind", "host"), ("replica", "a")): 3,
        ("msh_errors_total", ("kind", "host"), ("replica", "b")): 3,
        ("msh_waiting", ("replica", "b")): 1,
    }


def test_who_reports_no_more_is_forgotten():
    now = 100.0
    board = replicas.Board(lambda: now)
    assert board.report("a", b"x", 2) is None
    now += 6
    assert board.report("b", b"y", 1) is None
    assert (board.figures(), board.talking()) == ({"a": b"x", "b": b"y"}, 3)
    now += 6
    assert (board.figures(), board.talking()) == ({"b": b"y"}, 1)
    board.end("Over.")
    assert board.report("b", b"y", 1) == "Over."
