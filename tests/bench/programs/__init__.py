"""The programs that send, each run as a process of its own: `python -m tests.bench.programs.ours '{…}'`.

Each takes a `Job` as JSON in its first argument and prints what it measured as one line of JSON: `answered`,
`accepted`, `seconds`, `cpu` (user and system seconds of the process while it sent) and `longest_gap` (the longest time
in seconds without an answer, where it is known). Start, imports, handshake and warm-up are not in the figures.
"""
