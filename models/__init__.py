"""Networks as ordered Forward-Forward units in plain float torch."""

from models.spec import MODEL_NAMES, ModelSpec

__all__ = ["MODEL_NAMES", "ModelSpec"]
