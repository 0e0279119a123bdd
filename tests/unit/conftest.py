"""Pure functions and small tables: nothing starts a process or a server, runs a model or draws a page."""

import torch

torch.set_num_threads(1)
