"""What compiled models keep from step to step, bases of spectral splits and held amaxes, and how it is saved.

What is kept lies beside the modules of the model (`kept`), each tensor under the name of its site: the graphs that run
a module, however many, all reach the same (`keeper`). A graph whose policy keeps any has two inputs more than Dynamo
gave it (`inputs`), through which its operators reach them; `Stateful` appends these to each call (`runtime`).
`checkpoint` saves and restores, and `distributed` does so within torch.distributed.checkpoint.
"""

from metis_compile.state.checkpoint import load_state_dict, state_dict, tensors
from metis_compile.state.distributed import KeptState
from metis_compile.state.inputs import keeps, shapes_in_use, with_state_inputs
from metis_compile.state.kept import clear, first_values
from metis_compile.state.runtime import Stateful

__all__ = [
    "KeptState",
    "Stateful",
    "clear",
    "first_values",
    "keeps",
    "load_state_dict",
    "shapes_in_use",
    "state_dict",
    "tensors",
    "with_state_inputs",
]
