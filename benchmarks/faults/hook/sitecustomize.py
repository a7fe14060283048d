"""Python imports this at its start where this folder is on PYTHONPATH: that makes its process able to fail."""

import os

if "FAULTS_FOLDER" in os.environ:
    from benchmarks.faults.injection import install

    install()
