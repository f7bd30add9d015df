"""The embedded policy: a tiny Qwen3 and its tokenizer, made in code, warmed up on demonstrations."""
