"""Tests of the tests: `python -m tests.mutation` changes one thing in a module, again and again, and asks whether a test notices."""
