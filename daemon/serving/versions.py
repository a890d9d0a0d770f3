"""Weight versions on disk: immutable files, and one manifest that says which of them serves.

    versions/<n>.safetensors    written once, never changed
    versions/manifest.json      replaced whole, atomically; the only thing that changes

The learner writes a candidate's file; only the server touches the manifest, from one thread at a
time (`swaps.py`). A version that the manifest does not name does not exist: a file left by a crash
is written over by the next candidate of that number.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from daemon.clock import stamp
from daemon.durable import remove_leftovers, replace_file
from daemon.serving.manifest import MOST_ATTEMPTS, Manifest, VersionEntry
from engines import Weights, WeightsError, weights_digest, weights_from_bytes, weights_to_bytes

log = logging.getLogger(__name__)


class VersionStore:
    """The folder of versions.

    Args:
        folder: Made if missing.
        keep: How many versions stay, see `Manifest.accepted`.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        folder.mkdir(parents=True, exist_ok=True)
        self._manifest: Manifest | None = None
        self.crashed: int | None = None  # what served until its third crash, found by `start`
        self._unwritten = False

    @property
    def manifest(self) -> Manifest:
        """As last written; `start` comes first."""
        if self._manifest is None:
            raise RuntimeError("VersionStore.start has not run")
        return self._manifest

    @property
    def durable(self) -> bool:
        """Whether the manifest is on disk as it is."""
        return not self._unwritten

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
        damaged: list[VersionEntry] = []
        for entry in self._in_order():
            if (weights := self._attempt(entry, damaged)) is None:
                continue
            if entry.version != self.manifest.active:
                self._fall_back(entry.version, damaged)
            return weights
        return self._start_untrained(first, self.manifest.last + 1)

    def _in_order(self) -> list[VersionEntry]:
        """What may serve, in the order to try: the active, the good, what never passed."""
        manifest = self.manifest
        untried = [e for e in manifest.versions if e.state in ("pending", "replaced")]
        untried = [e for e in untried if e.version != manifest.active]
        active = manifest.entry(manifest.active)
        rest = sorted(untried, key=lambda e: -e.version)
        return [active, *manifest.fallbacks(), *rest]

    def _attempt(self, entry: VersionEntry, damaged: list[VersionEntry]) -> Weights | None:
        """A version's weights, if it may serve; a pending one is counted before it is loaded."""
        version = entry.version
        if entry.state != "good":
            if entry.attempts >= MOST_ATTEMPTS:
                log.error("every start with a version has crashed", extra={"version": version})
                self.crashed = version
                return None
            self._write_or_keep(self.manifest.with_attempts(version, entry.attempts + 1))
        try:
            return self.load(entry)
        except (WeightsError, OSError) as error:
            log.error("version cannot serve", extra={"version": version, "why": str(error)})
            if isinstance(error, WeightsError):  # what cannot be read now may be whole
                damaged.append(self.manifest.entry(version))
            return None

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

    def content(self, entry: VersionEntry) -> bytes:
        """A version's file as it is, which holds what the manifest says.

        Raises:
            WeightsError: The file is damaged or another one.
            OSError: The file cannot be read.
        """
        content = self.path(entry.version).read_bytes()
        self._checked(content, entry.version, entry.sha256)
        return content

    def verify(self, version: int, sha256: str) -> Weights:
        """The weights in a version's file, which must have this digest.

        Raises:
            WeightsError: The file is damaged or another one.
            OSError: The file cannot be read.
        """
        return self._checked(self.path(version).read_bytes(), version, sha256)

    def _checked(self, content: bytes, version: int, sha256: str) -> Weights:
        weights = weights_from_bytes(content)
        if weights.version != version or weights_digest(weights) != sha256:
            raise WeightsError(f"the file of version {version} holds other weights")
        return weights

    def accept(
        self,
        weights: Weights,
        *,
        best: bool = True,
        trials: Collection[int] = (),
        bad: Collection[int] = (),
    ) -> None:
        """Make a version whose file is in place the active one, and prune old ones.

        Args:
            weights: What the file holds.
            best: It is also the best one from here on.
            trials: Versions whose probation goes on, and what they are compared with.
            bad: Versions that were found bad and served all the same.

        Raises:
            OSError: The manifest cannot be written; nothing has changed.
        """
        before = self.manifest
        entry = msgspec.structs.replace(_entry(weights), state="pending")
        after = before.accepted(entry, best=best, keep=self._keep, trials=trials)
        for version in bad:
            after = after.failed(version) if after.find(version) is not None else after
        self._write(after)
        for entry in before.versions:
            if after.find(entry.version) is None:
                self._remove(entry.version)

    def change(self, manifest: Manifest) -> None:
        """Write a manifest that was made from the present one.

        Raises:
            OSError: It cannot be written; nothing has changed.
        """
        self._write(manifest)

    def change_at_once(self, manifest: Manifest) -> None:
        """As `change`, but it holds even where it cannot be written now, until the next start."""
        self._write_or_keep(manifest)

    def write_again(self) -> None:
        """Write what could not be written; does nothing where all is on disk."""
        if self._unwritten:
            self._write_or_keep(self.manifest)

    def refuse(self, version: int) -> None:
        """Use up a candidate's number and remove its file."""
        old = self.manifest
        self._write(msgspec.structs.replace(old, last=max(old.last, version)))
        if all(entry.version != version for entry in old.versions):
            self._remove(version)

    def _fall_back(self, version: int, damaged: list[VersionEntry]) -> None:
        """Serve another version; those that are damaged are gone."""
        old = self.manifest
        if self.crashed == old.active:
            old = old.rolled_back(version)
        else:
            self.crashed = None
        self._write_or_keep(old.fallen_back(version, damaged))
        for entry in damaged:
            self._remove(entry.version)

    def _write_or_keep(self, manifest: Manifest) -> None:
        try:
            self._write(manifest)
        except OSError as error:
            if not self._unwritten:  # it is tried again each second
                log.error("manifest cannot be written", extra={"why": str(error)})
            self._manifest, self._unwritten = manifest, True

    def _remove(self, version: int) -> None:
        try:
            self.path(version).unlink(missing_ok=True)
        except OSError as error:  # it costs space, nothing else
            log.warning("old version stays", extra={"version": version, "why": str(error)})

    def _start_untrained(self, first: Callable[[int], Weights], version: int) -> Weights:
        weights = first(version)
        replace_file(self.path(version), weights_to_bytes(weights))
        changes = 0 if self._manifest is None else self._manifest.changes + 1
        entries = [_entry(weights)]
        self._write(Manifest(version, None, version, version, entries, changes))
        return weights

    def _write(self, manifest: Manifest) -> None:
        content = msgspec.json.format(msgspec.json.encode(manifest))
        replace_file(self._folder / "manifest.json", content)
        if self._unwritten:
            log.info("manifest is written again")
        self._manifest, self._unwritten = manifest, False


def _entry(weights: Weights) -> VersionEntry:
    digest = weights_digest(weights)
    return VersionEntry(weights.version, digest, stamp(), weights.parent, weights.last_seq)
