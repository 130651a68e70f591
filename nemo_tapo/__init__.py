"""TAPO (Trajectory-Augmented Policy Optimization, arXiv 2606.18844) for NVIDIA NeMo-RL."""

__version__ = "0.1.0"
