"""Networks as ordered Forward-Forward units in plain float torch; precision is applied from outside."""

from models.spec import MODEL_NAMES, ModelSpec

__all__ = ["MODEL_NAMES", "ModelSpec"]
