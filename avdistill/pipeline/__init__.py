"""The framework of the stages: command line, outputs, worker processes, progress and errors."""
