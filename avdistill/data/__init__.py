"""From videos to batches: media files, packed stores, the index of clips, datasets and their sources."""
