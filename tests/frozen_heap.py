"""Imported last by the server of forks (on_ranks.py): the garbage collector of a fork leaves alone what was there before.

Else each fork looks at a million objects of torch and DeepSpeed at every full collection, and gets a copy of their pages.
"""

import gc

gc.freeze()
