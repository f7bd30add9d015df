"""An example of a distribution that brings Isentrope an algorithm, in parts and as a recipe."""
