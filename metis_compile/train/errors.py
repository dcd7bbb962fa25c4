"""What a user of the main job can get wrong."""

__all__ = ["TrainError"]


class TrainError(ValueError):
    """A run cannot start or go on, for a reason the user can act on; the message is one line."""
