"""What keeps a model from being exported, in one line."""


class ExportError(RuntimeError):
    """Names what cannot be exported and where it is, or what is missing, and what to do."""
