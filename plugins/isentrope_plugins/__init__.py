"""Bundled plugins of the other kinds: models and engines."""
