"""Inputs that are wrong, hostile or merely unusual, in one table: each ends in the right answer or in a clear error.

``python -m tests.adversarial`` prints the table; ``-o docs/adversarial.md`` writes it.
"""
