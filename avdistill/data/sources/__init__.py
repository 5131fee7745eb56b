"""Sources of data: HTTP, archives, YouTube, published weights and features."""
