"""A tiny world of our own for AppWorld's real engine: made-up people, notes, songs, tasks.

Runs in AppWorld's interpreter, and only calls what is installed there::

    APPWORLD_ROOT=FOLDER python -m isentrope_envs.appworld.tiny FOLDER

This text is ours to publish. What it *writes* is not: ``base_dbs`` holds AppWorld's table schemas
and ``api_docs`` its documentation, both made from the part of the package whose licence asks that
public copies, and what is derived from them, be encrypted. Write it where it is used.

``tasks.py`` says what a task is, ``scenarios`` holds them, ``base.py`` writes what all tasks share,
``writing.py`` one task, ``__main__.py`` all of it.
"""
