"""Notebooks: Python that a policy writes, run cell by cell in a confined process."""
