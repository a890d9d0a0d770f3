"""Weight versions on disk: immutable files, and one manifest that says which of them serves.

    versions/<n>.safetensors    written once, never changed
    versions/manifest.json      replaced whole, atomically; the only thing that changes

The learner writes a candidate's file; only the server touches the manifest. A version that the
manifest does not name does not exist: a file left by a crash is written over by the next candidate
of that number.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from daemon.clock import stamp
from daemon.durable import remove_leftovers, replace_file
from engines import Weights, WeightsError, weights_digest, weights_from_bytes, weights_to_bytes

log = logging.getLogger(__name__)


class VersionEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One version that may serve."""

    version: int
    sha256: str
    created: str
    parent: int | None
    last_seq: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which versions there are.

    `best` is the one that no accepted candidate has beaten on the hold-out; `last` the highest
    number ever given to a candidate, refused ones included.
    """

    active: int
    previous: int | None
    best: int
    last: int
    versions: list[VersionEntry]

    def entry(self, version: int) -> VersionEntry:
        """One of `versions`, by its number."""
        return next(entry for entry in self.versions if entry.version == version)


class VersionStore:
    """The folder of versions.

    Args:
        folder: Made if missing.
        keep: How many versions stay; the active, the previous and the best one always do.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        folder.mkdir(parents=True, exist_ok=True)
        self._manifest: Manifest | None = None

    @property
    def manifest(self) -> Manifest:
        """As last written; `start` comes first."""
        if self._manifest is None:
            raise RuntimeError("VersionStore.start has not run")
        return self._manifest

    def path(self, version: int) -> Path:
        """Where a version's file is, or is to be written."""
        return self._folder / f"{version}.safetensors"

    def start(self, first: Callable[[int], Weights]) -> Weights:
        """The weights to serve: the active version, else the newest other one that is whole.

        Args:
            first: Makes untrained weights with a given number when no version is left to serve.

        Raises:
            WeightsError: The manifest itself is unreadable.
        """
        remove_leftovers(self._folder)
        path = self._folder / "manifest.json"
        if not path.exists():
            return self._start_untrained(first, 1)
        try:
            self._manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        except msgspec.MsgspecError as error:
            raise WeightsError(
                f"{path} is damaged ({error}): move the folder {self._folder} away, and what the "
                "learner knows serves again"
            ) from error
        newest = sorted(self._manifest.versions, key=lambda e: e.version, reverse=True)
        damaged: list[VersionEntry] = []
        for entry in sorted(newest, key=lambda e: e.version != self.manifest.active):
            try:
                weights = self.load(entry)
            except (WeightsError, OSError) as error:
                log.error(
                    "version cannot serve", extra={"version": entry.version, "why": str(error)}
                )
                if isinstance(error, WeightsError):  # what cannot be read now may be whole
                    damaged.append(entry)
                continue
            if entry.version != self._manifest.active:
                self._fall_back(entry.version, damaged)
            return weights
        return self._start_untrained(first, self._manifest.last + 1)

    def start_again(self, first: Callable[[int], Weights]) -> Weights:
        """Serve untrained weights of another network; files of the old one stay, unnamed."""
        return self._start_untrained(first, self.manifest.last + 1)

    def load(self, entry: VersionEntry) -> Weights:
        """A version's weights, verified against the manifest.

        Raises:
            WeightsError: The file is damaged or another one.
            OSError: The file cannot be read.
        """
        return self.verify(entry.version, entry.sha256)

    def verify(self, version: int, sha256: str) -> Weights:
        """The weights in a version's file, which must have this digest.

        Raises:
            WeightsError: The file is damaged or another one.
            OSError: The file cannot be read.
        """
        weights = weights_from_bytes(self.path(version).read_bytes())
        if weights.version != version or weights_digest(weights) != sha256:
            raise WeightsError(f"the file of version {version} holds other weights")
        return weights

    def accept(self, weights: Weights, *, best: bool = True) -> None:
        """Make a version whose file is in place the active one, and prune old ones.

        Args:
            weights: What the file holds.
            best: It is also the best one from here on.
        """
        entries = [*self.manifest.versions, _entry(weights)]
        active, previous = weights.version, self.manifest.active
        best_version = active if best else self.manifest.best
        others = [e for e in entries if e.version not in (active, previous, best_version)]
        surplus = others[: max(0, len(entries) - self._keep)]
        kept = [e for e in entries if e not in surplus]
        last = max(self.manifest.last, active)
        self._write(Manifest(active, previous, best_version, last, kept))
        for entry in surplus:
            self._remove(entry.version)

    def refuse(self, version: int) -> None:
        """Use up a candidate's number and remove its file."""
        old = self.manifest
        self._write(msgspec.structs.replace(old, last=max(old.last, version)))
        if all(entry.version != version for entry in old.versions):
            self._remove(version)

    def _fall_back(self, version: int, damaged: list[VersionEntry]) -> None:
        """Serve an older version; those that are damaged are gone."""
        old = self.manifest
        whole = [entry for entry in old.versions if entry not in damaged]
        kept = {entry.version for entry in whole}
        best = old.best if old.best in kept else version
        manifest = Manifest(version, None, best, old.last, whole)
        try:
            self._write(manifest)
        except OSError as error:  # the next start falls back again; what serves now is whole
            log.error("manifest cannot be written", extra={"why": str(error)})
            self._manifest = manifest
        for entry in damaged:
            self._remove(entry.version)

    def _remove(self, version: int) -> None:
        try:
            self.path(version).unlink(missing_ok=True)
        except OSError as error:  # it costs space, nothing else
            log.warning("old version stays", extra={"version": version, "why": str(error)})

    def _start_untrained(self, first: Callable[[int], Weights], version: int) -> Weights:
        weights = first(version)
        replace_file(self.path(version), weights_to_bytes(weights))
        self._write(Manifest(version, None, version, version, [_entry(weights)]))
        return weights

    def _write(self, manifest: Manifest) -> None:
        content = msgspec.json.format(msgspec.json.encode(manifest))
        replace_file(self._folder / "manifest.json", content)
        self._manifest = manifest


def _entry(weights: Weights) -> VersionEntry:
    digest = weights_digest(weights)
    return VersionEntry(weights.version, digest, stamp(), weights.parent, weights.last_seq)
