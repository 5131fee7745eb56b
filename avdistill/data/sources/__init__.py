"""Where data come from: HTTP, archives, YouTube, published weights and features."""
