"""Break a run on purpose and see what becomes of it: what tools/chaos.py is made of."""
