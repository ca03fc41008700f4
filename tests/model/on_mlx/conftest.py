"""Tests of MLX's engine. They are left out where MLX is not."""

import importlib.util

try:
    found = importlib.util.find_spec("mlx.core")
except ModuleNotFoundError:
    found = None
collect_ignore_glob = [] if found else ["test_*.py"]
