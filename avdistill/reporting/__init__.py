"""From the files of `evaluate` to statistics, tables, figures and pages."""
