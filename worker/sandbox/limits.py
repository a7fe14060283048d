"""Limits of the kernel on what a process may use."""

from __future__ import annotations

import resource

from worker.task import IntakeLimits


def limit_resources(limits: IntakeLimits) -> None:
    """Have the kernel stop what the loaders' own limits have missed."""
    for kind, wanted in (
        (resource.RLIMIT_AS, limits.address_space_bytes),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, limits.written_file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (allowed, hard if kind == resource.RLIMIT_CPU else allowed))  # first SIGXCPU, says why
