import os

import torch

if not torch.cuda.is_available():
    # Triton reads it when it decorates a kernel, so before anything imports one.
    os.environ["TRITON_INTERPRET"] = "1"
