"""The search for a tuner, its arguments and its learning rate, judged by validation images alone.

Only the command `vet tune` imports this room.

- candidates.py lists what is tried. Each tuner's file states the tuner's candidates.
- search.py tries candidates by successive halving, and goes on after a kill.
- ray.py tries several candidates at once, on a Ray cluster.
- page.py shows all trials, and accuracy against size and time.
- tuning.py does all of this in order, and trains the winner.
"""
