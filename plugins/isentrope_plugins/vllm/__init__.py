"""vLLM: its servers in an interpreter of their own, which a run talks to over HTTP."""
