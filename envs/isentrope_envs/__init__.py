"""Environments that need nothing but Python."""
