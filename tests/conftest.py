"""Every test computes with one thread: two workers share two cores, and results do not depend on the machine."""

import os

import torch

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)
