"""Pure functions and small tables: nothing starts a process or a server, runs a model or draws a page."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("many tests", max_examples=12, deadline=None)
settings.load_profile("many tests")
