"""What a user of the benchmarks can get wrong."""

__all__ = ["BenchError"]


class BenchError(ValueError):
    """A benchmark cannot start, for a reason the user can act on; the message is one line."""
