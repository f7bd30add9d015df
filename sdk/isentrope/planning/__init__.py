"""Plans: what a run would be and what it would take, told without running it.

Nothing is loaded, started or sampled. What a plan says of memory is what the learner counts on
shapes alone (`learner.memory`), and what the engine says of itself.
"""
