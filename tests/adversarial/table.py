"""All rows, in the order of the table."""

from __future__ import annotations

from . import rows_cli, rows_files, rows_inputs, rows_models, rows_policies
from .scene import Row

ROWS: list[Row] = [*rows_models.ROWS, *rows_inputs.ROWS, *rows_policies.ROWS, *rows_files.ROWS, *rows_cli.ROWS]
