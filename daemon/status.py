"""`ffedge status`: what a running daemon says of itself, asked over HTTP like any client."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from daemon.asking import ask, ask_object, not_ours
from daemon.model_words import (
    holdout_of_active,
    minute,
    one_line,
    probation,
    refusals,
    refused_in_a_row,
)

_MEBIBYTE = 1 << 20
_WORST_SHOWN = 3
_EVENTS_SHOWN = 3
_SILENT_SECONDS = 5.0


def show_status(address: str, *, as_json: bool) -> None:
    """Print it.

    Args:
        address: Of the daemon, `http://host:port`.
        as_json: As one JSON object, else as a table.

    Raises:
        AskingError: No daemon answers.
    """
    status = read_status(address)
    if as_json:
        print(json.dumps(status))  # noqa: T201 - what was asked for
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, text in _rows(status):
        table.add_row(key, text)
    Console(markup=False, emoji=False).print(table)


def read_status(address: str) -> dict[str, Any]:
    """What is known of a running daemon; None: it does not know.

    Args:
        address: Of the daemon, `http://host:port`.

    Raises:
        AskingError: No daemon answers.
    """
    address = address.rstrip("/")
    try:
        ready = json.loads(ask(address, "/health/ready", also=503))
        models = ask_object(address, "/models")
        events = json.loads(ask(address, f"/train/events?limit={_EVENTS_SHOWN}", also=503))
        metrics = _Metrics(ask(address, "/metrics").decode())
        value, build = metrics.value, metrics.labels("ffedge_build_info")
        holdout, refused = holdout_of_active(models), refused_in_a_row(models)
        return {
            "address": address,
            "version": build["version"],
            "engine": build["engine"],
            "ready": ready["ready"],
            "model": models["model"],
            "model_version": models["active"],
            "classes": len(models["classes"]),
            "probation": models["probation"],
            "refused": {
                "in_a_row": len(refused),
                "last": refused[0]["gate"]["reason"] if refused else None,
                "text": refusals(models),
            },
            "events": events.get("events"),
            "samples": value("ffedge_samples_stored"),
            "samples_holdout": value("ffedge_samples_holdout"),
            "samples_unlabelled": value("ffedge_samples_unlabelled"),
            "store_unavailable": ready["ingest"]["cause"],
            "ingest_refused": ready["ingest"]["why"],
            "samples_waiting": value("ffedge_sample_queue_depth"),
            "removed": ready["removed"],
            "learner": ready["learner"],
            "learning": ready["learning"],
            "learning_paused": ready["learning_paused"],
            "learner_heartbeat_age_seconds": value("ffedge_learner_heartbeat_age_seconds"),
            "learned_samples": value("ffedge_learn_samples_total"),
            "learner_backlog_samples": value("ffedge_learner_backlog_samples"),
            "progressive_accuracy": value("ffedge_progressive_accuracy_ratio", "all"),
            "recent_accuracy": value("ffedge_progressive_accuracy_ratio", "recent"),
            "faded_accuracy": value("ffedge_progressive_accuracy_ratio", "faded"),
            "delayed_accuracy": value("ffedge_delayed_accuracy_ratio"),
            "delayed_labels": metrics.by_label("ffedge_delayed_labels_total"),
            "holdout_accuracy": None if holdout is None else holdout.accuracy,
            "holdout_decided": None if holdout is None else holdout.decided,
            "holdout_samples": value("ffedge_holdout_samples"),
            "holdout_missing_classes": value("ffedge_holdout_missing_classes"),
            "class_accuracy": metrics.by_label("ffedge_class_accuracy_ratio", kind="holdout"),
            "forgetting": value("ffedge_forgetting_ratio"),
            "power_up": ready["power"]["up"],
            "power_provider": ready["power"]["provider"],
            "power_refused": ready["power"]["refused"],
            "power_reader": ready["power"]["reader"],
            "nvpmodel": metrics.labels("ffedge_power_info").get("nvpmodel") or None,
            "board_watts": value("ffedge_board_power_watts"),
            "rail_watts": metrics.by_label("ffedge_rail_power_watts"),
            "board_energy_joules": value("ffedge_board_energy_joules_total"),
            "learn_energy_joules": value("ffedge_learn_energy_joules_total"),
            "learn_sample_energy_joules": value("ffedge_learn_sample_energy_joules"),
            "learn_version_energy_joules": value("ffedge_learn_version_energy_joules"),
            "temperature_celsius": metrics.by_label("ffedge_temperature_celsius"),
            "ram_used_bytes": value("ffedge_ram_used_bytes"),
            "ram_total_bytes": value("ffedge_ram_total_bytes"),
            "ram_gpu_used_bytes": value("ffedge_ram_gpu_used_bytes"),
            "process_resident_bytes": metrics.by_label("ffedge_process_resident_bytes"),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise not_ours(address) from error


class _Metrics:
    """The samples of `GET /metrics`; one label tells those of a name apart, beside their kind."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self._samples = [sample for family in families for sample in family.samples]

    def labels(self, name: str) -> dict[str, str]:
        """Labels of an `_info` metric, none if it is absent."""
        return next((dict(s.labels) for s in self._samples if s.name == name), {})

    def by_label(self, name: str, kind: str | None = None) -> dict[str, float]:
        """Values by the value of the one label, of one kind where there are several."""
        return {
            next((value for label, value in s.labels.items() if label != "kind"), ""): s.value
            for s in self._samples
            if s.name == name and s.labels.get("kind") == kind
        }

    def value(self, name: str, label: str = "") -> float | None:
        """One value, None if it is absent."""
        return self.by_label(name).get(label)


def _removed(removed: dict[str, Any] | None) -> str:
    """What retention took away, while there is anything."""
    if removed is None:
        return ""
    text = f"{removed['rows']:,} removed since the start, limit {removed['limit']}"
    if removed["unlearned"]:
        text += f"; {removed['unlearned']:,} OF THEM NOT LEARNED"
    return text


def _silent(status: dict[str, Any]) -> str:
    """How long the learner has said nothing, where it is longer than usual."""
    age = status["learner_heartbeat_age_seconds"]
    return f", last heard {age:.0f} s ago" if age and age >= _SILENT_SECONDS else ""


def _lately(status: dict[str, Any], number: Callable[..., str]) -> str:
    """How it goes now: the score over all samples remembers the beginning for ever."""
    text = (
        f"progressive accuracy {number('progressive_accuracy', form='.1%')} over all, "
        f"{number('recent_accuracy', form='.1%')} over the newest 500, "
        f"{number('faded_accuracy', form='.1%')} faded"
    )
    if labels := sum(status["delayed_labels"].values()):
        text += f"; {number('delayed_accuracy', form='.1%')} of predictions labelled later"
        text += f" ({labels:,.0f} since the start)"
    return text


def _classes(status: dict[str, Any]) -> str:
    """Where the version that serves is weakest, what it forgot, what nothing is known of."""
    known = status["class_accuracy"]
    parts = []
    if known:
        worst = sorted(known, key=lambda label: known[label])[:_WORST_SHOWN]
        parts.append(
            "weakest at the last decision "
            + ", ".join(f"{label} {known[label]:.0%}" for label in worst)
        )
    if status["forgetting"] is not None:
        parts.append(f"forgotten {status['forgetting']:.1%}")
    if status["holdout_missing_classes"]:
        parts.append(f"{status['holdout_missing_classes']:.0f} WITHOUT A HOLD-OUT SAMPLE")
    return "; ".join(parts)


def _events(status: dict[str, Any]) -> list[tuple[str, str]]:
    """What happened to the network that learns, by date: it may be long ago."""
    if (events := status["events"]) is None:
        return [("events", "unknown: what was recorded cannot be read now")]
    texts = [
        f"{e['kind']} at sample {e['seq']:,} on {minute(e['at'])}: {e['text']}" for e in events
    ]
    return [("" if place else "events", text) for place, text in enumerate(texts)]


def _rows(status: dict[str, Any]) -> list[tuple[str, str]]:
    """The table: what is not known is said to be so, never shown as nothing."""

    def number(key: str, unit: str = "", form: str = ",.0f") -> str:
        value = status[key]
        return "unknown" if value is None else f"{value:{form}}{unit}"

    def mebibytes(key: str) -> str:
        value = status[key]
        return "unknown" if value is None else f"{value / _MEBIBYTE:,.0f} MiB"

    def each(key: str, unit: str, form: str, scale: float = 1) -> str:
        values = status[key].items()
        return ", ".join(f"{name} {value / scale:{form}}{unit}" for name, value in values)

    ended, up = status["power_reader"], status["learner"]
    provider = status["power_provider"]
    removed, words = _removed(status["removed"]), one_line(status["learning"]["text"])
    source = f" from {provider}" if provider else ", no reader" if ended else ", starting"
    refused = "; ".join(f"{name}: {why}" for name, why in status["power_refused"].items())
    return [
        ("daemon", f"{status['address']}, ffedge {status['version']}"),
        ("engine", status["engine"]),
        (
            "serves",
            f"{status['model']} version {status['model_version']}, {status['classes']} classes",
        ),
        (
            "",
            f"hold-out accuracy {number('holdout_accuracy', form='.1%')}"
            + (f" as of {minute(decided)}" if (decided := status["holdout_decided"]) else ""),
        ),
        *[("", probation(trial)) for trial in status["probation"]],
        *([("", row)] if (row := status["refused"]["text"]) else []),
        (
            "samples",
            f"unknown: the store is unavailable ({status['store_unavailable']})"
            if status["samples"] is None
            else f"{number('samples')} stored, {number('samples_holdout')} of them hold-out, "
            f"{number('samples_unlabelled')} without a label, "
            f"{number('samples_waiting')} waiting",
        ),
        *([("", f"NONE IS TAKEN: {why}")] if (why := status["ingest_refused"]) else []),
        *([("", removed)] if removed else []),
        (
            "learner",
            f"{'up' if up else 'down'}{_silent(status)}, {number('learned_samples')} learned since "
            f"the start, {number('learner_backlog_samples')} to learn",
        ),
        ("", _lately(status, number)),
        *([("classes", classes)] if (classes := _classes(status)) else []),
        *_events(status),
        ("learning", words),
        # Beside another reason; alone it is in that line.
        *([("", held)] if (held := status["learning_paused"]) and held not in words else []),
        (
            "power",
            f"{number('board_watts', ' W', '.2f')}{source}"
            + (f" ({each('rail_watts', ' W', '.2f')})" if status["rail_watts"] else ""),
        ),
        *([("", refused)] if refused else []),
        *([("", f"power reader: {ended}")] if ended else []),
        (
            "energy",
            f"{number('board_energy_joules', ' J')}, learning {number('learn_energy_joules', ' J')}"
            f", {number('learn_sample_energy_joules', ' J', '.3g')} a sample, "
            f"{number('learn_version_energy_joules', ' J', '.3g')} a version",
        ),
        ("temperature", each("temperature_celsius", " °C", ".1f") or "unknown"),
        (
            "memory",
            f"{mebibytes('ram_used_bytes')} of {mebibytes('ram_total_bytes')} used, GPU "
            f"{mebibytes('ram_gpu_used_bytes')}; "
            + each("process_resident_bytes", " MiB", ",.0f", _MEBIBYTE),
        ),
        ("power mode", status["nvpmodel"] or "unknown"),
    ]
