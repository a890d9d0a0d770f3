"""What `GET /models` says of versions and candidates, in the words that commands print."""

from __future__ import annotations

from typing import Any, NamedTuple

# `GET /models` has no more decisions than these.
_DECISIONS_SHOWN = 50


class Holdout(NamedTuple):
    """Hold-out accuracy of what serves.

    Args:
        accuracy: As of the newest decision that it took part in.
        decided: When that was.
    """

    accuracy: float
    decided: str


def minute(moment: str) -> str:
    """A moment, short enough for a table; UTC as it was."""
    return moment[:16].replace("T", " ") + "Z"


def one_line(text: str) -> str:
    """Words that somebody wrote, without what would break a line or steer the terminal."""
    return "".join(each if each.isprintable() else " " for each in text)


def holdout_of_active(models: dict[str, Any]) -> Holdout | None:
    """How what serves did when it was last compared; None: no decision of it is kept."""
    active, newest, found = models["active"], 0, None
    for version in [*models["versions"], *models["refused"]]:
        number = int(version["version"])
        gate = version["gate"]
        if not gate or not gate.get("n") or gate["reason"] == "overtaken":
            continue  # one that was overtaken was compared with what serves no more
        if version["version"] == active and gate["decision"] == "accepted":
            accuracy = gate["candidate_accuracy"]
        elif gate["incumbent"] == active and gate["decision"] == "refused":
            accuracy = gate["incumbent_accuracy"]
        else:
            continue
        if number > newest:  # in the order of decisions, whatever the clock said
            newest, found = number, Holdout(accuracy, gate["decided"])
    return found


def refused_in_a_row(models: dict[str, Any]) -> list[dict[str, Any]]:
    """Candidates refused since the newest one that was accepted, newest first."""
    newest = max(int(version["version"]) for version in models["versions"])
    refused = [each for each in models["refused"] if int(each["version"]) > newest]
    return sorted(refused, key=lambda each: -int(each["version"]))


def refusals(models: dict[str, Any]) -> str:
    """The row of refusals that is not over; nothing where the last candidate was accepted."""
    if not (row := refused_in_a_row(models)):
        return ""
    count = f"{len(row)} or more" if len(row) >= _DECISIONS_SHOWN else f"{len(row)}"
    many = "candidates in a row" if len(row) > 1 else "candidate"
    return f"{count} {many} refused, last: {why_refused(row[0]['gate'])}"


def why_refused(gate: dict[str, Any]) -> str:
    """Why a candidate was refused, with the figures if it was for these."""
    if gate["reason"] == "too_few_samples" and gate.get("min_samples"):
        return (
            f"too_few_samples, {gate['n']} different ones in the hold-out where "
            f"{gate['min_samples']} are wanted"
        )
    if gate["reason"] != "accuracy" or "best_accuracy" not in gate:  # by an earlier release
        return str(gate["reason"])
    wanted = max(gate["incumbent_accuracy"], gate["best_accuracy"]) - gate["margin"]
    found = gate["candidate_accuracy"]
    # As many digits as tell the two apart.
    digits = next((d for d in range(1, 6) if f"{found:.{d}%}" != f"{wanted:.{d}%}"), 6)
    return f"accuracy, {found:.{digits}%} where {wanted:.{digits}%} is wanted"


def probation(trial: dict[str, Any]) -> str:
    """How far one version's probation is."""
    if trial["against"] is None:
        return f"version {trial['version']} on probation, with none to compare it with"
    return (
        f"version {trial['version']} on probation: {trial['n']} of {trial['samples']} samples "
        f"compared, {trial['correct']} right, {trial['previous_correct']} by version "
        f"{trial['against']}"
    )


def marks(models: dict[str, Any], version: str) -> str:
    """What a version is kept for, beside being one of the newest."""
    names = {"serves": "active", "previous": "previous", "best": "best"}
    found = [word for word, key in names.items() if models[key] == version]
    if any(trial["against"] == version for trial in models["probation"]) and not found:
        found.append("compared with")
    return ", ".join(found)
