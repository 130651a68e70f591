# NVIDIA's NeMo-RL container with this package in its driver's environment. Nothing else of it changes: everything that
# nemo_tapo imports is there already, and Ray's workers need nothing of it, for the loss goes to them by value.
#
#   docker build -t nemo-rl-tapo:v0.7.0 .
#
# Without building: mount this repository, set PYTHONPATH to it, run `python -m nemo_tapo.cli` (docs/cluster.md).
ARG NEMO_RL_TAG=v0.7.0
FROM nvcr.io/nvidia/nemo-rl:${NEMO_RL_TAG}

COPY pyproject.toml README.md LICENSE /opt/nemo-tapo/
COPY nemo_tapo /opt/nemo-tapo/nemo_tapo
COPY tools /opt/nemo-tapo/tools
COPY examples /opt/nemo-tapo/examples
RUN /opt/nemo_rl_venv/bin/python -m pip install --no-deps --no-build-isolation --no-cache-dir /opt/nemo-tapo \
    && /opt/nemo_rl_venv/bin/python /opt/nemo-tapo/tools/check_container.py
