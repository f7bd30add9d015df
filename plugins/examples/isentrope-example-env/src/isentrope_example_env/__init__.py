"""An example of a distribution that brings Isentrope an environment."""
