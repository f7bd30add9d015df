"""Collecting experience: chat templates, the token ledger, and the collector."""
