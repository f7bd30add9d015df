"""An objective for Isentrope: {{cookiecutter.id}}."""
