"""Entropy controllers."""
