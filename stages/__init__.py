"""One module per DVC stage and nothing else: this folder is the graph."""
