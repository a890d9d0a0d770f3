"""What an operator may have serve: any version that is kept, and by a rollback an earlier one."""

from __future__ import annotations

from daemon.errors import NoPreviousError, UnknownVersionError
from daemon.serving.manifest import Manifest, VersionEntry


def kept_version(manifest: Manifest, version: int) -> VersionEntry:
    """A version's entry.

    Raises:
        UnknownVersionError: It is not kept.
    """
    if (entry := manifest.find(version)) is None:
        raise UnknownVersionError("no such version is kept; GET /models lists them")
    return entry


def rollback_target(manifest: Manifest, to: int | None) -> VersionEntry:
    """What a rollback goes to: a good version, for the one that serves now will be bad.

    Args:
        manifest: As it is.
        to: The version asked for; None: the first that may serve.

    Raises:
        UnknownVersionError: It is not kept.
        NoPreviousError: There is none to go to, or not by this way.
    """
    targets = manifest.rollback_targets()
    if to is None:
        if not targets:
            raise NoPreviousError(
                "no earlier version is kept that was not found bad or rolled back: GET /models "
                "lists what is, and POST /models/{model}/activate (ffedge activate) serves any "
                "of it"
            )
        return targets[0]
    entry = kept_version(manifest, to)
    if to == manifest.active:
        raise NoPreviousError("this version serves already")
    if entry not in targets:
        why = {
            "bad": "was found bad or rolled back, and a rollback goes to one that was not",
            "good": "is newer, and a rollback goes back",
        }.get(entry.state, "has not proved itself, and a rollback goes to an earlier one that has")
        raise NoPreviousError(
            f"this version {why}: leave out `to` (--to), or POST /models/{{model}}/activate "
            "(ffedge activate) serves it all the same"
        )
    return entry
