"""How much memory the machine has, and how much of it this process may take."""

import subprocess
import sys

import msh_native
import pytest

from msh_mlx import bench
from msh_mlx.errors import MshError
from msh_mlx.library import bandwidth
from msh_mlx.model.config import LmConfig
from msh_mlx.model.engines import random_lm
from msh_mlx.system import machine
from msh_mlx.system.machine import _group_limits

GIB = 1 << 30
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")


def put(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@only_linux
def test_limits_of_groups_in_both_versions(tmp_path):
    assert list(_group_limits(tmp_path / "nothing")) == []
    second = tmp_path / "2"
    group = "sys/fs/cgroup/outer"
    put(
        second,
        {
            "proc/self/cgroup": "0::/outer/inner\n",
            f"{group}/memory.max": "3000\n",
            f"{group}/memory.current": "1500\n",
            f"{group}/memory.stat": "anon 7\ninactive_file 200\nactive_file 9\n",
            f"{group}/inner/memory.max": "max\n",
            f"{group}/inner/memory.current": "1200\n",
        },
    )
    assert list(_group_limits(second)) == [(3000, 1300)]
    # In a container, the group's own files may be at the root, whatever its path is outside.
    first = tmp_path / "1"
    group = "sys/fs/cgroup/memory"
    put(
        first,
        {
            "proc/self/cgroup": "9:cpu,cpuacct:/\n4:memory:/container\n0::/\n",
            f"{group}/memory.limit_in_bytes": "5000\n",
            f"{group}/memory.usage_in_bytes": "2500\n",
            f"{group}/memory.stat": "inactive_file 1\ntotal_inactive_file 500\n",
        },
    )
    assert list(_group_limits(first)) == [(5000, 2000)]


@only_linux
def test_a_limit_counts_where_it_is_less_than_the_machine_has(monkeypatch):
    free, whole = machine.available_memory(), machine.physical_memory()
    monkeypatch.setattr(machine, "_group_limits", lambda: iter([(1 << 62, 0), (GIB, GIB // 4)]))
    assert machine.physical_memory() == GIB < whole
    assert machine.available_memory() == 3 * GIB // 4 < free
    assert machine.memory_to_take() == 3 * GIB // 4 - GIB * 3 // 32
    monkeypatch.setattr(machine, "_group_limits", lambda: iter([(GIB, 2 * GIB)]))
    assert machine.available_memory() == machine.memory_to_take() == 0


@only_linux
@pytest.mark.parametrize(
    ("gigabytes", "options", "says"),
    [
        (3, ["--size", "7b"], "The weights take 4.8"),
        (1.75, ["--size", "1b", "--steps", "1"], "for the keys and values of a whole window; shorten it, or close"),
    ],
)
def test_a_limit_of_addresses_is_an_error_in_one_sentence(gigabytes, options, says):
    """As with `ulimit -v`: nothing aborts, and nothing large is read or made in vain."""
    # Each thread has addresses of its own for its stack and what it allocates.
    code = "import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2]); "
    code += f"import resource; resource.setrlimit(resource.RLIMIT_AS, (int({gigabytes} * 2**30),) * 2); "
    code += "import sys; from msh_mlx.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "bench", "--engine", "native", *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (2, "")
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_peak_does_not_count_what_is_only_there_to_be_read(monkeypatch):
    config = LmConfig(dim=64, num_layers=1, num_heads=1, context=10, text_card=100, card=10, depformer_dim=32)
    lm = random_lm(config, 16, 32, 0, "native")
    order = []
    monkeypatch.setattr(lm, "peak_bytes", lambda: order.append("peak") or 1)
    monkeypatch.setattr(bench, "bandwidth", lambda engine: order.append(engine) or 1e9)
    assert bench.measure(lm, "it", steps=1).peak == 1
    assert order == ["peak", "native"]


def test_too_little_memory_to_measure_is_an_error(monkeypatch):
    monkeypatch.setattr(bandwidth, "has_gpu", lambda: False)

    def none(*_):
        raise msh_native.ModelError("It is too much.")

    monkeypatch.setattr(msh_native, "read_bandwidth", none)
    with pytest.raises(MshError, match=r"^It is too much; close other programs\.$"):
        bandwidth.bandwidth()
