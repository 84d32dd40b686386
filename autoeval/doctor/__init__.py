"""Finding out before the run what would stop it in the middle (docs/operations.md)."""

from autoeval.doctor.examination import Asked, examine

__all__ = ["Asked", "examine"]
