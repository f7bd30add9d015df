"""Evaluation: how often a policy succeeds, with k tries, and how sure that is."""
