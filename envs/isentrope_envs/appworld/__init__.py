"""AppWorld: the real engine as an environment, in an interpreter of its own."""
