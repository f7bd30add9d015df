"""An environment for Isentrope: {{cookiecutter.id}}."""
