"""The installed bundles: `STORE/NAME/TYPE`, such as `bimedix2-8b-bi:q4_k_m`, and the demo model in the user's cache."""

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
    """One bundle of the store; if its manifest cannot be read, `manifest` is None and `fault` says why."""

    name: str
    directory: Path
    manifest: Manifest | None
    fault: str | None


class Store:
    """The bundles of one user.

    Args:
        root: Directory of the installed bundles; it need not exist.
        cache: Directory of the converted demo model.
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
        # there is no demo model before the first conversion, or in an installation without the embedded checkpoint
        if (self._cache / DEMO).is_dir() and (demo := self.demo_directory()).is_dir():
            found.append(_describe(DEMO, demo))
        return found

    def is_demo(self, directory: Path) -> bool:
        """Return whether this is the directory of a demo bundle."""
        return directory.parent == self._cache / DEMO

    def target(self, name: str) -> Path:
        """Return the directory of the bundle `NAME:TYPE`, installed or not.

        Raises:
            UsageError: The name is not of this form.
        """
        base, _, kind = name.partition(":")
        if not (_NAME.fullmatch(base) and _TYPE.fullmatch(kind)):
            raise UsageError(
                f"{name[:80]!r} is not a valid model name. Choose a name such as bimedix2-8b-bi:q4_k_m (lower-case "
                "letters, digits, '.', '_', '-')."
            )
        return self._root / base / kind

    def find(self, model: str | Path) -> Path:
        """Return the directory of a bundle given as a path, `NAME:TYPE`, `NAME` (if it has one type), or `demo`.

        Raises:
            UsageError: No bundle has that name, or several do. The message lists the installed ones.
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
        if matches:
            raise UsageError(f"Several models are named {text[:80]!r} ({', '.join(matches)}). Name one of them.")
        raise UsageError(
            f"No installed model is named {text[:80]!r} (installed: {', '.join(names) or 'none'}). "
            "Name an installed model, or the directory of a bundle."
        )

    def installed(self, name: str) -> StoredBundle:
        """Return the installed bundle `NAME:TYPE`, `NAME` (if it has one type) or `demo`; unlike `find`, no path.

        Raises:
            UsageError: No bundle has that name, or several do.
        """
        directory = self.find(name)
        for bundle in self.list():
            if bundle.directory == directory:
                return bundle
        raise UsageError(
            f"{name[:80]!r} is not the name of an installed model. `bimedix-edge models list` shows the names."
        )

    def remove(self, bundle: StoredBundle) -> None:
        """Remove an installed bundle; if interrupted, it is there whole or not at all.

        Args:
            bundle: An installed bundle; see `installed`.

        Raises:
            UsageError: A conversion is writing it, or the system denies the removal.
        """
        remove_directory(bundle.directory)
        # leftovers of removals that were killed
        for left in self._root.glob("*/.*.removed"):
            shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(OSError):  # it is not empty while other types of this model are installed
            bundle.directory.parent.rmdir()

    def default(self) -> Path:
        """Return the directory of the only installed bundle, or of the demo model if no bundle is installed.

        Raises:
            UsageError: Several bundles are installed.
        """
        installed = [bundle for bundle in self.list() if bundle.name != DEMO]
        if len(installed) > 1:
            names = ", ".join(bundle.name for bundle in installed)
            raise UsageError(f"No model was chosen, and several are installed ({names}). Name one with --model.")
        return installed[0].directory if installed else self.demo_directory()

    def demo_directory(self) -> Path:
        """Return the directory of the demo bundle; each version and each checkpoint has its own."""
        version = importlib.metadata.version("bimedix-edge")
        digest = hashlib.sha256()
        for path in sorted(path for path in demo_checkpoint().rglob("*") if path.is_file()):
            digest.update(f"{path.name} {hash_file(path)}\n".encode())
        return self._cache / DEMO / f"{version}-{FORMAT}-{digest.hexdigest()[:12]}-{DEMO_TYPE.lower()}"


def packaged(package: str, folder: str) -> Path:
    """Return the path of a data directory beside a package's modules; it need not exist.

    `importlib.resources` is not used: in an editable install it may find an older copy of the files.
    """
    spec = importlib.util.find_spec(package)
    assert spec is not None, "the package is part of this installation"
    assert spec.origin is not None, "it has an __init__"
    return Path(spec.origin).parent / folder


def demo_checkpoint() -> Path:
    """Return the directory of the embedded demo checkpoint.

    Raises:
        BundleError: The checkpoint is not part of this installation.
    """
    path = packaged("bimedix_edge.models.demo", "checkpoint")
    if not (path / "config.json").is_file():
        raise BundleError(f"The demo checkpoint is missing in {path}. Install the package again.")
    return path


def _describe(name: str, directory: Path) -> StoredBundle:
    try:
        return StoredBundle(name, directory, read_manifest(directory), None)
    except BimedixEdgeError as error:
        return StoredBundle(name, directory, None, str(error))
