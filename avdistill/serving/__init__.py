"""Serving of a trained student through MLflow."""
