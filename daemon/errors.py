"""Every error that a user or a client can meet.

    FfedgeError
    ├── ConfigError                        the daemon does not start; exit code 2
    ├── StoreError                         the database cannot be used as promised
    ├── DataError                          a data set on disk cannot be used
    ├── TransferError                      import or export cannot go on; exit code 2
    └── RequestError                       answered as {"error", "code", "field"?}
        ├── BadHttpError            400    not a request that HTTP/1.1 knows
        ├── BadJsonError            400    the body is not JSON
        ├── BadHeaderError          400    a header that the body needs is missing or wrong
        ├── BadBinaryError          400    the bytes of a body are not what they claim to be
        ├── UnknownIdError          404    nothing has this id
        ├── UnknownModelError       404    another model is served
        ├── UnknownVersionError     404    no such version is kept
        ├── TooSlowError            408    the request did not arrive in time
        ├── IdConflictError         409    the id belongs to another sample
        ├── LabelConflictError      409    the sample, or prediction, has another label
        ├── KeyInUseError           409    a request with this key is being written
        ├── NothingToLearnError     409    training was asked for before any sample came
        ├── NoPreviousError         409    there is no version to roll back to, or not by this way
        ├── VersionChangedError     409    another version began to serve while the request waited
        ├── TooLargeError           413    the body exceeds its limit
        ├── ContentTypeError        415    the content type is not one we read
        ├── BadFieldError           422    a field is missing, unknown, or of the wrong type
        ├── BadShapeError           422    the features do not have the model's shape
        ├── NotFiniteError          422    a feature is not a number that float32 holds
        ├── KeyReusedError          422    the key belongs to another request
        ├── BadPictureError         422    the picture cannot be decoded
        ├── TooManyClassesError     422    the label would be one class too many
        ├── AllRefusedError         422    no sample of a batch was accepted
        ├── TooManyConnectionsError 429    too many are open, in all or from one address; retry
        ├── HeadersTooLargeError    431    too many headers, or too long ones
        ├── BusyError               503    more samples arrive than can be kept; retry
        ├── DrainingError           503    the daemon is stopping; retry
        ├── QueueFullError          503    ingest is behind; retry
        ├── StorageError            503    the sample could not be made durable; retry
        ├── StoreUnavailableError   503    the store takes nothing now, and why; retry
        ├── EngineError             503    the engine did not answer; retry
        └── NotReadyError           503    a part that this request needs is not up; retry

A message says what was found, what was wanted and what to do. It never repeats input.
"""

from __future__ import annotations

from typing import Any, ClassVar


class FfedgeError(Exception):
    """Base of all errors that ffedge raises on purpose."""


class ConfigError(FfedgeError):
    """The configuration is wrong; the message names the key."""


class StoreError(FfedgeError):
    """The database cannot keep the promise that acknowledged means durable."""


class DataError(FfedgeError):
    """A data set on disk cannot be used."""


class TransferError(FfedgeError):
    """An import or export cannot go on: the daemon does not answer, or refuses."""


class RequestError(FfedgeError):
    """A request that is answered with an error.

    Args:
        message: What was found, what was wanted, what to do.
        field: Path of the offending field, where there is one.
    """

    status: ClassVar[int]
    code: ClassVar[str]
    retry_after_seconds: ClassVar[int | None] = None

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field

    def body(self) -> dict[str, Any]:
        """The JSON object that a client gets."""
        body: dict[str, Any] = {"error": str(self), "code": self.code}
        if self.field is not None:
            body["field"] = self.field
        return body


class BadHttpError(RequestError):
    """The request cannot be parsed."""

    status, code = 400, "bad_http"


class BadJsonError(RequestError):
    """The body is not JSON."""

    status, code = 400, "bad_json"


class BadHeaderError(RequestError):
    """A header that says how to read the body is missing or wrong."""

    status, code = 400, "bad_header"


class BadBinaryError(RequestError):
    """The bytes of a body are not what they claim to be."""

    status, code = 400, "bad_binary"


class UnknownIdError(RequestError):
    """Nothing has this id."""

    status, code = 404, "unknown_id"


class UnknownModelError(RequestError):
    """The model in the path is not the one that is served."""

    status, code = 404, "unknown_model"


class UnknownVersionError(RequestError):
    """No version of this number is kept."""

    status, code = 404, "unknown_version"


class TooSlowError(RequestError):
    """The request did not arrive within its deadline."""

    status, code = 408, "too_slow"


class IdConflictError(RequestError):
    """The id is taken by a sample with other content."""

    status, code = 409, "id_conflict"


class LabelConflictError(RequestError):
    """The sample, or prediction, has another label, and nobody said to replace it."""

    status, code = 409, "label_conflict"


class KeyInUseError(RequestError):
    """The first request with this key has no answer yet."""

    status, code, retry_after_seconds = 409, "key_in_use", 1


class NothingToLearnError(RequestError):
    """Training needs at least one sample."""

    status, code = 409, "no_samples"


class NoPreviousError(RequestError):
    """There is no version that a rollback could go to, or the one named is not for it."""

    status, code = 409, "no_previous"


class VersionChangedError(RequestError):
    """What the request would have changed had changed before its turn came."""

    status, code = 409, "version_changed"


class TooLargeError(RequestError):
    """The body, or the batch in it, exceeds its limit."""

    status, code = 413, "too_large"


class ContentTypeError(RequestError):
    """The content type or encoding is not one that this route reads."""

    status, code = 415, "content_type"


class BadFieldError(RequestError):
    """A field is missing, unknown, or holds a value of the wrong type."""

    status, code = 422, "bad_field"


class BadShapeError(RequestError):
    """The features do not have the model's shape."""

    status, code = 422, "bad_shape"


class NotFiniteError(RequestError):
    """A feature is not finite as a float32."""

    status, code = 422, "not_finite"


class KeyReusedError(RequestError):
    """The key came with a request of other content before."""

    status, code = 422, "key_reused"


class BadPictureError(RequestError):
    """The picture is damaged, or of a kind that is not read."""

    status, code = 422, "bad_picture"


class TooManyClassesError(RequestError):
    """All class places are taken."""

    status, code = 422, "unknown_label"


class AllRefusedError(RequestError):
    """Every sample of a batch was refused; `rejected` says why, one by one."""

    status, code = 422, "all_refused"

    def __init__(self, rejected: list[dict[str, Any]]) -> None:
        super().__init__(f"all {len(rejected)} samples were refused; see 'rejected'")
        self.rejected = rejected

    def body(self) -> dict[str, Any]:
        """See `RequestError.body`."""
        return super().body() | {"rejected": self.rejected}


class TooManyConnectionsError(RequestError):
    """As many connections are open as may be."""

    status, code, retry_after_seconds = 429, "too_many_connections", 1


class HeadersTooLargeError(RequestError):
    """The request's headers exceed their limit."""

    status, code = 431, "headers_too_large"


class BusyError(RequestError):
    """As many posts of samples wait as may; refused before the body was read."""

    status, code, retry_after_seconds = 503, "busy", 1


class DrainingError(RequestError):
    """The daemon stops before the request is there."""

    status, code, retry_after_seconds = 503, "draining", 2


class QueueFullError(RequestError):
    """More samples wait to be written than the queue holds."""

    status, code, retry_after_seconds = 503, "queue_full", 1


class StorageError(RequestError):
    """The transaction failed; what was in it is kept only in rare cases (see docs/disk.md)."""

    status, code, retry_after_seconds = 503, "storage", 5


class StoreUnavailableError(RequestError):
    """The store takes nothing: the disk is full, read-only or failing, or its quota is reached."""

    status, code, retry_after_seconds = 503, "store_unavailable", 5

    def __init__(self, cause: str, why: str, *, what: str = "takes nothing") -> None:
        super().__init__(f"the store {what} now ({why}); predictions go on")
        self.cause = cause

    def body(self) -> dict[str, Any]:
        """See `RequestError.body`."""
        return super().body() | {"cause": self.cause}


class EngineError(RequestError):
    """The serving engine's device failed, or was short of memory."""

    status, code, retry_after_seconds = 503, "engine", 1


class NotReadyError(RequestError):
    """A part that this request needs is not up."""

    status, code, retry_after_seconds = 503, "not_ready", 2
