"""Serve a model with llama.cpp's server, as the package xllamacpp has it: llama_server.py FILE. It prints its address."""

import sys
import threading

import xllamacpp

parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.n_ctx = 512
parameters.cpuparams.n_threads = 1
parameters.sampling.temp = 0.0
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
threading.Event().wait()
