"""Read media files, pack clips into stores, index them, and batch them for training."""
