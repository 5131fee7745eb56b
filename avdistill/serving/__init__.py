"""The trained student as a model that answers for videos."""
