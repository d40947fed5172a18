"""Time the models of this archive: `python time_here.py --help`."""

import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036 - `pack` writes this file for any machine
    sys.exit("time_here.py needs Python 3.11 or newer; this is " + sys.version.split()[0])
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
# onnxruntime reports on its use over the network unless this is there when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import numpy  # noqa: F401
    import onnxruntime  # noqa: F401
except ImportError as error:
    sys.exit(str(error) + "; to install both: python -m pip install numpy onnxruntime")

if __name__ == "__main__":
    from compress.benchmark.portable.portable_timer import main

    sys.exit(main())
