"""What the stages are made of: config, data, training, tracking, pipeline, reporting, serving."""
