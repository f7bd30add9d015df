"""The embedded policy: a tiny Qwen3 made in code and warmed up on demonstrations."""
