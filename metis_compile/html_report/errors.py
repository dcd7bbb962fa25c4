"""What a user of a report can get wrong."""

__all__ = ["ReportError"]


class ReportError(ValueError):
    """A file that a report can't be read from or written to; the message is one line."""
