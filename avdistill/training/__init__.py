"""Training of students, their predictions, and what their teachers know."""
