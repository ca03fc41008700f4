"""Start moshi's own server, in the environment of that package: `torch_server.py FOLDER PORT`, with the files of `demo.py`.

It is the published program, except for the parts that need CUDA, and it computes in float32.
"""

import os
import runpy
import sys
from pathlib import Path

os.environ |= {"NO_TORCH_COMPILE": "1", "NO_CUDA_GRAPH": "1", "HF_HUB_OFFLINE": "1"}
import torch

folder, port = Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.cuda.synchronize = lambda *_: None
torch.bfloat16 = torch.float32
config = ["--config-path", str(folder / "config.json")]
sys.argv = ["moshi.server", "--device", "cpu", "--static", "none", "--host", "127.0.0.1", "--port", port, *config]
runpy.run_module("moshi.server", run_name="__main__")
