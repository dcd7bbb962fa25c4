"""A process that takes a training step for each line it reads: run by its path, with some metis_compile on PYTHONPATH.

That may be the package as it was in another commit, so nothing of it is used but the backend itself: this file imports
neither the settings nor the benchmarks, and takes the model from the file that it is told.
"""

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

ANSWER = "seconds "  # how the lines begin that answer


def main(request: dict[str, Any]) -> None:
    """Compile the model and take steps until stdin ends."""
    import torch
    import torch.nn.functional as F

    from metis_compile import backend

    if not Path(backend.__file__).is_relative_to(request["package"]):
        sys.exit(f"metis_compile comes from {backend.__file__} and not from {request['package']}")
    spec = importlib.util.spec_from_file_location("bench_model", request["model"])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_model"] = module
    spec.loader.exec_module(module)

    device = torch.device(request["device"])
    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    shape = module.Shape(**request["shape"])
    model = module.GPT(shape).to(device)
    compiled: Any = torch.compile(model, backend=backend.metis, options={"policy": request["policy"]})
    tokens, targets = torch.randint(shape.vocabulary, (2, request["batch"], shape.context)).to(device)
    for _ in sys.stdin:
        model.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=request["dtype"] == "bfloat16"):
            logits = compiled(tokens)
        F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        print(f"{ANSWER}{time.perf_counter() - began}", flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
