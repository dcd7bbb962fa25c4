"""The process that times the published layers: ``python -m against_worker JSON``, as bench.worker does."""

import sys

import against

from metis_compile.bench import worker

if __name__ == "__main__":
    worker.KINDS["against"] = against.measure
    sys.exit(worker.main(sys.argv[1]))
