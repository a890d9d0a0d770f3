"""Settings: one TOML file, overridden by `FFEDGE_<SECTION>__<KEY>` in the environment.

Frozen and closed: an unknown key is an error, never ignored. Units are in the names.
`deploy/ffedge.toml` lists every key with its default; a test holds the two equal.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from daemon.errors import ConfigError
from engines import Recipe
from models import MODEL_NAMES, ModelSpec

ENVIRONMENT_PREFIX = "FFEDGE_"
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Ratio = Annotated[float, Field(ge=0, le=1)]
_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]"


# The log of a few large groups, and rows that are worth learning from.
_LEAST_STORE_BYTES = 32 << 20
_DEFAULT_HIDDEN = (500, 500, 500)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(_Section):
    """The network."""

    name: Literal["mlp", "resnet8", "resnet18", "mobilenet_v2", "efficientnet_b0"] = "mlp"
    input_shape: tuple[Positive, ...]
    max_classes: Annotated[int, Field(ge=2)]
    hidden: tuple[Positive, ...] = ()
    width: Annotated[float, Field(gt=0, le=4)] = 1.0
    objective: Literal["class_goodness", "ff"] = "class_goodness"

    def spec(self) -> ModelSpec:
        """The same as a `ModelSpec`, which checks the sizes against each other."""
        hidden = self.hidden or (_DEFAULT_HIDDEN if self.name == "mlp" else ())
        try:
            return ModelSpec(
                self.name,
                self.input_shape,
                self.max_classes,
                hidden,
                width=self.width,
                objective=self.objective,
            )
        except ValueError as error:
            raise ConfigError(f"[model]: {error}") from error


class StoreSettings(_Section):
    """Where samples, weights and checkpoints live."""

    directory: Path = Path("./var")
    queue_samples: Positive = 4096
    queue_bytes: Annotated[int, Field(ge=1 << 20)] = 64 << 20
    duplicates: Literal["keep", "drop"] = "keep"
    holdout_ratio: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    max_samples: NotNegative = 0
    max_bytes: NotNegative = 4 << 30
    when_full: Literal["remove", "refuse"] = "remove"
    max_age_days: Annotated[float, Field(ge=0)] = 0.0
    max_class_samples: NotNegative = 0
    scrub_rows_per_second: NotNegative = 2000

    @field_validator("max_bytes")
    @classmethod
    def _room_for_rows(cls, size: int) -> int:
        if 0 < size < _LEAST_STORE_BYTES:
            raise ValueError(f"is below {_LEAST_STORE_BYTES}, the least that a store works in")
        return size

    @field_validator("directory")
    @classmethod
    def _home(cls, directory: Path) -> Path:
        if directory == Path():
            raise ValueError('is empty; "." is the folder the daemon was started in')
        return directory.expanduser()


class ServerSettings(_Section):
    """The HTTP server."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8484
    engine: Literal["auto", "tensorrt", "torch"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    header_seconds: Annotated[float, Field(gt=0)] = 10.0
    body_seconds: Annotated[float, Field(gt=0)] = 15.0
    idle_seconds: Annotated[float, Field(gt=0)] = 60.0
    connections: Positive = 512
    address_connections: Positive = 256
    ingest_requests: Positive = 128
    keep_predictions: bool = False


class LearnerSettings(_Section):
    """How and when the learner learns."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    block_samples: Positive = 128
    max_wait_seconds: Annotated[float, Field(gt=0)] = 5.0
    steps_per_block: Positive = 32
    train_steps: Positive = 200
    batch_samples: Annotated[int, Field(ge=2, le=4096)] = 64
    new_ratio: Annotated[float, Field(gt=0, le=1)] = 0.25
    replay_samples: Positive = 10_000
    replay_bytes: Annotated[int, Field(ge=1 << 20)] = 64 << 20
    mask: Literal["seen", "new", "off"] = "seen"
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    look_ahead_weight: Annotated[float, Field(ge=0, le=10)] = 1.0
    drift_delta: Annotated[float, Field(gt=0, lt=1)] = 0.002
    drift_steps: NotNegative = 320
    # Not faster by default: newer samples alone win back what a change cost; twice the rate on top
    # of them lost more than it won where inputs changed (MNIST: 25 % right for 69 % at the end).
    drift_rate: Annotated[float, Field(gt=0, le=100)] = 1.0
    drift_new_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    masters: Literal["float32", "int16", "int8"] = "float32"
    fusion: Literal["auto", "compiled", "kernels", "eager"] = "eager"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpu_memory_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 30.0
    write_bytes_per_second: NotNegative = 250_000
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    niceness: Annotated[int, Field(ge=0, le=19)] = 10
    hang_seconds: Annotated[float, Field(ge=2)] = 30.0

    @property
    def may_compile(self) -> bool:
        """Whether the first step may take minutes."""
        return self.fusion != "eager"

    def recipe(self) -> Recipe:
        """How the network learns, as the engines have it."""
        return Recipe(masters=self.masters, fusion=self.fusion)


class GateSettings(_Section):
    """When a candidate may serve."""

    margin: Ratio = 0.01
    min_samples: Positive = 20
    max_samples: Positive = 1000
    follow_drift: bool = False
    keep_versions: Annotated[int, Field(ge=2)] = 5
    probation_samples: Positive = 200
    probation_seconds: Annotated[float, Field(gt=0)] = 3600.0

    @model_validator(mode="after")
    def _some_candidate_can_pass(self) -> GateSettings:
        if self.min_samples > self.max_samples:
            raise ValueError("min_samples exceeds max_samples, so no candidate could ever pass")
        return self


class PowerSettings(_Section):
    """How power, memory and temperature are read."""

    provider: Literal["auto", "jtop", "ina3221", "rapl", "none"] = "auto"
    interval_seconds: Annotated[float, Field(ge=0.1, le=60)] = 1.0
    reader_python: str = ""
    sysfs: Path = Path("/sys")
    jtop_socket: Path = Path("/run/jtop.sock")


class GovernorSettings(_Section):
    """How far learning may go; it is slowed or paused, predictions never."""

    max_watts: Annotated[float, Field(ge=0)] = 0.0
    max_celsius: Annotated[float, Field(ge=0)] = 85.0
    min_free_bytes: NotNegative = 256 << 20
    max_cpu_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_predict_seconds: Annotated[float, Field(ge=0)] = 0.0
    max_duty: Annotated[float, Field(ge=0.05, le=1)] = 1.0
    safe_duty: Ratio = 0.25
    budget_seconds: Annotated[float, Field(ge=0)] = 0.0
    budget_steps: NotNegative = 0
    budget_joules: Annotated[float, Field(ge=0)] = 0.0
    hours: str = ""

    @field_validator("hours")
    @classmethod
    def _some_time_is_left(cls, hours: str) -> str:
        if hours and not re.fullmatch(f"{_TIME}-{_TIME}", hours):
            raise ValueError('is no span of the day such as "22:00-06:00"; "" is always')
        if hours and hours[:5] == hours[-5:]:
            raise ValueError('begins and ends at the same time; "" is always')
        return hours


class LogSettings(_Section):
    """Log lines, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "text"] = "json"


class Settings(BaseSettings):
    """All settings; built by `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    model: ModelSettings
    store: StoreSettings = StoreSettings()
    server: ServerSettings = ServerSettings()
    learner: LearnerSettings = LearnerSettings()
    gate: GateSettings = GateSettings()
    power: PowerSettings = PowerSettings()
    governor: GovernorSettings = GovernorSettings()
    log: LogSettings = LogSettings()


def load_settings(path: Path, environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from a TOML file and the environment, the environment first.

    Args:
        path: The file.
        environment: Checked for misspelt sections; None: the process's own.

    Raises:
        ConfigError: The file cannot be read or parsed, a key is unknown, missing or out of range.
    """
    if not path.is_file():
        raise ConfigError(
            f"no configuration file {path}; copy deploy/ffedge.toml there, or name one by --config"
        )

    class FileSettings(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return env_settings, TomlConfigSettingsSource(settings_cls, toml_file=path)

    _check_environment(os.environ if environment is None else environment)
    try:
        settings = FileSettings()  # type: ignore[call-arg]  # the sources give the arguments
    except ValidationError as error:
        found = "; ".join(map(_describe, error.errors()))
        raise ConfigError(f"{path}, or the environment: {found}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    settings.model.spec()
    _check_limits(settings)
    return settings


def _check_limits(settings: Settings) -> None:
    store, classes = settings.store, settings.model.max_classes
    block_samples = settings.learner.block_samples
    kept = {
        "max_samples": store.max_samples,
        f"max_class_samples of all {classes} classes": store.max_class_samples * classes,
    }
    for name, samples in kept.items():
        if 0 < samples < block_samples:
            raise ConfigError(
                f"[store] {name} is below learner.block_samples, {block_samples}: learning "
                "would never begin; raise it, or set it to 0 for no limit"
            )


def _check_environment(environment: Mapping[str, str]) -> None:
    """pydantic-settings passes over variables whose section it does not know; a typo must not."""
    for name in environment:
        upper = name.upper()  # pydantic-settings reads them in any case
        if upper.startswith(ENVIRONMENT_PREFIX):
            section, _, key = upper[len(ENVIRONMENT_PREFIX) :].lower().partition("__")
            if not key or section not in Settings.model_fields:
                known = ", ".join(Settings.model_fields)
                raise ConfigError(
                    f"environment variable {name} is not FFEDGE_<SECTION>__<KEY> with a section "
                    f"of {known}"
                )


def _describe(error: ErrorDetails) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}"
    if error["type"] == "missing":
        return f"key {key!r} is missing"
    if key == "model.name":
        return f"key {key!r} must be one of {', '.join(MODEL_NAMES)}"
    return f"key {key!r}: {error['msg']}"
