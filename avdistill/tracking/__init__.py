"""Runs as MLflow shows them: written to journals on disk, sent to MLflow by a process of its own."""
