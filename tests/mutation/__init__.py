"""Tests of the tests: one thing in a module is changed, again and again; does a test notice? `python -m tests.mutation --help`.

`targets.toml` says what is changed and which tests are asked, `operators.py` what a change is, `skipped.py` what is left alone: annotations, assertions,
f-strings and the texts of errors; docstrings and other strings have nothing that an operator changes. The score counts every survivor, also
those that `survivors.toml` has a reason for.
"""
