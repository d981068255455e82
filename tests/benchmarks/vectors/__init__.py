"""Our vector collections beside their peers: `python -m tests.benchmarks.vectors`.

Importing this package sets the variables that hold numpy, faiss and the peers to one thread; they
are read when those are imported, so nothing of the package may be imported after numpy.
"""

import os

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    # LanceDB waits for ever in a pool of one thread; what holds it to one is the one core.
    "LANCE_CPU_THREADS": "2",
    "LANCE_IO_THREADS": "2",
    "TOKIO_WORKER_THREADS": "2",
}
os.environ.update(ONE_THREAD)
os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
