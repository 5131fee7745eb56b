"""params.yaml as typed, validated objects: the one place that says what a suite may contain."""
