"""The options of `msh-mlx serve` that are about Ray."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from ..errors import InputError
from .options import seconds, whole

if TYPE_CHECKING:
    from .options import Group

LOCAL = "local"  # the address that stands for a cluster of this machine alone


def add_ray(to: Group) -> None:
    """Add the options."""
    where = (
        "serve with Ray Serve, in one or more processes, each with its own model and conversations: on this machine, or in "
        "the cluster at ADDRESS, such as auto or 10.0.0.1:6379"
    )
    to.value("--ray", "ADDRESS", where, nargs="?", const=LOCAL)
    many = "run this many of these processes, or as many as conversations need, from MIN to MAX (default: 1)"
    to.value("--replicas", "N|MIN-MAX", many)
    cpus = "reserve this many processors for each process (default: 1)"
    to.value("--replica-cpus", "N", cpus, type=whole(0, 1025))
    to.value("--replica-gpus", "N", "reserve this many GPUs for each process (default: 0)", type=whole(0, 65))
    fewer = "end a process that is not needed any more after this time (default: 60)"
    to.value("--scale-down-after", "SECONDS", fewer, type=seconds)
    drain = "let conversations go on for this time when their process is to end (default: 3600)"
    to.value("--drain", "SECONDS", drain, type=seconds)


def check_ray(args: argparse.Namespace) -> None:
    """Check the options, and set those that were left out; raise InputError if they do not fit.

    `replicas` becomes the pair of the least and the most.
    """
    about = {"replicas": "1", "replica_cpus": 1, "replica_gpus": 0, "scale_down_after": 60.0, "drain": 3600.0}
    if args.ray is None:
        if given := [name for name in about if getattr(args, name) is not None]:
            raise InputError(f"--{given[0].replace('_', '-')} is only for --ray", "give that, too, or leave it out")
        return
    if not args.ray:
        raise InputError("--ray has an empty address", "give one, or --ray alone for this machine")
    for name, value in about.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", args.replicas)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise InputError(f"--replicas {args.replicas} is not a number of processes", "give one such as 2, or 1-4")
    args.replicas = least, most
    if args.wyoming:
        raise InputError("--wyoming is not served with --ray", "run another server for it")
