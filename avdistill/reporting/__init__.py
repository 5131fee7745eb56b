"""Statistics, tables, figures and pages from the files of stage evaluate."""
