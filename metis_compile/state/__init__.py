"""What compiled models keep from step to step: the bases of spectral splits, and how they are saved and restored.

A graph whose policy keeps bases has two inputs more than Dynamo gave it (`inputs`): flat float32 tensors (`flat`), as
large as its calls let expect (`sizing`). `Stateful` appends them to each call (`runtime`), and `checkpoint` saves and
restores them.
"""

from metis_compile.state.checkpoint import clear, load_state_dict, state_dict, tensors
from metis_compile.state.flat import NAMES, State, new_state
from metis_compile.state.inputs import with_state_inputs
from metis_compile.state.runtime import Stateful
from metis_compile.state.sizing import room

__all__ = [
    "NAMES",
    "State",
    "Stateful",
    "clear",
    "load_state_dict",
    "new_state",
    "room",
    "state_dict",
    "tensors",
    "with_state_inputs",
]
