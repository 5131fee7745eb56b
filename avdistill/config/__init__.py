"""params.yaml as typed, validated objects: the schema of a suite."""
