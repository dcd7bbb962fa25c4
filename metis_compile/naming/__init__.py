"""Names of modules and parameters as the user's outermost model has them, whatever wraps or cuts it."""

from metis_compile.naming.outermost import name_modules
from metis_compile.naming.report import PolicyWarning

__all__ = ["PolicyWarning", "name_modules"]
