"""A package of its own, so that `tests` is this folder even where another `tests` stands on the path (NeMo-RL has one)."""
