"""`python -m benchmarks gpu`: all that is to be measured on a machine with a GPU, within ten minutes.

    smoke       every method on the GPU against the CPU, the same bits twice, in every precision; waits within a step
    rows        the GPU column of docs/benchmarks.md
    throughput  clips per second of a training step by batch, precision, eager and compiled; profile of a step
    training    a training of three epochs with its loader, selection and checkpoints; its evaluation

Each part is a process of its own with its share of the time, and writes each finding at once: what one that is ended
has found is kept. docs/gpu.md shows it. A dry run is the same program with tiny sizes on the CPU.
"""
