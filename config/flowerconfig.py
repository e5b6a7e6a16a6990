"""Flower's options: what a campaign's tasks show, and that nobody can press a button.

The password comes from the environment (FLOWER_BASIC_AUTH), never from here.
"""

tasks_columns = "name,kwargs,result,state,received,runtime,worker"
read_only = True
max_tasks = 20_000
auto_refresh = True
natural_time = False
enable_events = False  # workers are started with -E
