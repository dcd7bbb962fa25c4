"""What quantizing each operand of each product does to a model's loss and gradients, without training it."""

from metis_compile.sensitivity.effects import Blame, Share, blame
from metis_compile.sensitivity.program import BlameError

__all__ = ["Blame", "BlameError", "Share", "blame"]
