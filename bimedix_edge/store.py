"""Where bundles live: `STORE/NAME/TYPE`, such as `bimedix2-8b-bi:q4_k_m`, and the demo model in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from bimedix_edge.bundle import FORMAT, Manifest, hash_file, read_manifest
from bimedix_edge.errors import BimedixEdgeError, BundleError, UsageError
from bimedix_edge.staging import remove_directory

__all__ = ["DEMO", "DEMO_TYPE", "Store", "StoredBundle", "demo_checkpoint", "packaged"]

DEMO = "demo"
DEMO_TYPE = "Q8_0"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TYPE = re.compile(r"[a-z0-9_]{1,16}")


@dataclass(frozen=True)
class StoredBundle:
    """One bundle of the store; `manifest` is None where it cannot be read, and `fault` says why."""

    name: str
    directory: Path
    manifest: Manifest | None
    fault: str | None


class Store:
    """The bundles of one user.

    Args:
        root: the directory of the installed bundles; it need not exist.
        cache: the directory in which the demo model is kept.
    """

    def __init__(self, root: Path, cache: Path) -> None:
        self._root = root
        self._cache = cache

    def list(self) -> list[StoredBundle]:
        """Return the installed bundles by name, the demo model last, without hashing their files."""
        found = [
            _describe(f"{path.parent.name}:{path.name}", path)
            for path in sorted(self._root.glob("*/*"))
            if path.is_dir() and not path.name.startswith(".") and not path.parent.name.startswith(".")
        ]
        # an installation without the embedded checkpoint has no demo model; one without a converted one neither
        if (self._cache / DEMO).is_dir() and (demo := self.demo_directory()).is_dir():
            found.append(_describe(DEMO, demo))
        return found

    def is_demo(self, directory: Path) -> bool:
        """Return whether a directory is where a demo bundle is kept."""
        return directory.parent == self._cache / DEMO

    def target(self, name: str) -> Path:
        """Return the directory where the bundle `NAME:TYPE` is or will be installed.

        Raises:
            UsageError: it is no such name.
        """
        base, _, kind = name.partition(":")
        if not (_NAME.fullmatch(base) and _TYPE.fullmatch(kind)):
            raise UsageError(
                f"Expected a name such as bimedix2-8b-bi:q4_k_m (small letters, digits, '.', '_', '-'), but it is "
                f"{name[:80]!r}; choose another."
            )
        return self._root / base / kind

    def find(self, model: str | Path) -> Path:
        """Return the directory of a bundle given as a path, `NAME:TYPE`, `NAME` (if it has one type), or `demo`.

        Raises:
            UsageError: there is none of that name, or several; the message names those there are.
        """
        text = str(model)
        if isinstance(model, Path) or "/" in text or "\\" in text:
            return Path(model)
        if text == DEMO:
            return self.demo_directory()
        names = [bundle.name for bundle in self.list()]
        matches = [name for name in names if text in (name, name.partition(":")[0])]
        if len(matches) == 1:
            return self.target(matches[0])
        if not matches and Path(text).is_dir():
            return Path(text)
        listed = ", ".join(matches or names) or "none are installed"
        problem = "several have that name" if matches else "there is none of that name"
        raise UsageError(f"Expected one model named {text[:80]!r}, but {problem} ({listed}); name one of them.")

    def installed(self, name: str) -> StoredBundle:
        """Return the bundle that `NAME:TYPE`, `NAME` (if it has one type) or `demo` names, unlike `find` no other one.

        Raises:
            UsageError: there is none of that name, or several.
        """
        directory = self.find(name)
        for bundle in self.list():
            if bundle.directory == directory:
                return bundle
        raise UsageError(
            f"Expected the name of an installed model, but {name[:80]!r} is none; see `bimedix-edge models list`."
        )

    def remove(self, bundle: StoredBundle) -> None:
        """Remove an installed bundle; it is there whole or not at all.

        Args:
            bundle: see `installed`.

        Raises:
            UsageError: a conversion is writing it, or it may not be removed.
        """
        remove_directory(bundle.directory)
        # what a killed removal left of other bundles
        for left in self._root.glob("*/.*.removed"):
            shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(OSError):  # other types of this model are installed
            bundle.directory.parent.rmdir()

    def default(self) -> Path:
        """Return the only installed bundle, or where the demo model is or will be when none is installed.

        Raises:
            UsageError: several are installed.
        """
        installed = [bundle for bundle in self.list() if bundle.name != DEMO]
        if len(installed) > 1:
            names = ", ".join(bundle.name for bundle in installed)
            raise UsageError(f"Expected to know which model to use, but several are installed ({names}); add --model.")
        return installed[0].directory if installed else self.demo_directory()

    def demo_directory(self) -> Path:
        """Return where this version's demo bundle is kept; another version or checkpoint has another place."""
        version = importlib.metadata.version("bimedix-edge")
        digest = hashlib.sha256()
        for path in sorted(path for path in demo_checkpoint().rglob("*") if path.is_file()):
            digest.update(f"{path.name} {hash_file(path)}\n".encode())
        return self._cache / DEMO / f"{version}-{FORMAT}-{digest.hexdigest()[:12]}-{DEMO_TYPE.lower()}"


def packaged(package: str, folder: str) -> Path:
    """Return a directory of data beside a package's modules; it need not exist.

    `importlib.resources` would do, but in an editable install it joins the source tree with an older copy of the files.
    """
    spec = importlib.util.find_spec(package)
    assert spec is not None, "the package is part of this installation"
    assert spec.origin is not None, "it has an __init__"
    return Path(spec.origin).parent / folder


def demo_checkpoint() -> Path:
    """Return the directory of the embedded demo checkpoint.

    Raises:
        BundleError: it is not part of this installation.
    """
    path = packaged("bimedix_edge.models.demo", "checkpoint")
    if not (path / "config.json").is_file():
        raise BundleError(f"Expected the demo checkpoint in {path}, but it is not there; install the package again.")
    return path


def _describe(name: str, directory: Path) -> StoredBundle:
    try:
        return StoredBundle(name, directory, read_manifest(directory), None)
    except BimedixEdgeError as error:
        return StoredBundle(name, directory, None, str(error))
