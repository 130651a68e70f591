"""Installs the hooks of `cpu_for_cuda` in every Python process that has this folder on its PYTHONPATH.

Ray's workers and vLLM's engine processes inherit both variables, so that the driver needs to set them only once.
"""

import os

if os.environ.get("NEMO_RL_ON_CPU"):
    import cpu_for_cuda

    cpu_for_cuda.install()
