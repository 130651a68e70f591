"""A package, so that an installed package of the same name (NeMo-RL has one) does not hide ours."""
