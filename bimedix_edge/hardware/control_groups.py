"""Linux's control groups: the directories with the limits that a container or a service manager sets.

Source: Linux's `Documentation/admin-guide/cgroup-v1`, `cgroup-v2.rst`; cgroups(7).
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["groups"]


def groups(controller: str, root: Path) -> list[Path]:
    """Return the directories of this process's group and of its parents; each may set a limit, and all limits hold.

    Args:
        controller: Name of the controller, such as `memory` or `cpu`.
        root: Root of the file system.

    Returns:
        Directories in the controller's own tree (version 1), then those of version 2; empty where there are no groups.
    """
    listed = root / "proc/self/cgroup"
    if not listed.exists():
        return []
    found: list[Path] = []
    for line in listed.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            # several controllers of one tree share a directory, and each has a link to it
            found += _with_parents(root / "sys/fs/cgroup" / controller, path)
        elif not controllers:
            found += _with_parents(root / "sys/fs/cgroup", path)
    return found


def _with_parents(mount: Path, path: str) -> list[Path]:
    # inside a container the path may be the host's, of which only the mount itself is visible: directories that do not
    # exist are left out, and the mount is the container's own group
    parts = [part for part in path.split("/") if part not in ("", "..")]
    found = [mount.joinpath(*parts[:length]) for length in range(len(parts), -1, -1)]
    return [folder for folder in found if folder.is_dir()]
