"""A controller for Isentrope: {{cookiecutter.id}}."""
