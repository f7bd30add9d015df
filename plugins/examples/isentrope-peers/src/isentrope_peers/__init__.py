"""Environments of other libraries, brought to Isentrope by their own names."""
