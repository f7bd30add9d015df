"""The embedded engine: batched sampling from a transformers model, in this process."""
