"""The ffedge service: takes samples, has them learned, and answers from what was learned."""

__version__ = "0.1.0"

__all__ = ["__version__"]
