"""Training and inference of students, and the teacher outputs they learn from."""
