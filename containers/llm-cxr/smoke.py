"""Run in the environment: the published transformers, and a tiny network of LLM-CXR's kind."""

import tokenizers
import torch
import transformers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import chexgenbench.jobs.worker
from chexgenbench_plugins.llm_cxr.vqgan import VqGan
from chexgenbench_plugins.models.llm_cxr import LlmCxr

assert transformers.__version__ == "4.28.1", transformers.__version__
assert tokenizers.__version__ == "0.13.3", tokenizers.__version__
assert chexgenbench.jobs.worker.main and LlmCxr and VqGan
torch.manual_seed(0)
config = GPTNeoXConfig(
    vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
)
with torch.inference_mode():
    model = GPTNeoXForCausalLM(config).eval()
    codes = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=8, do_sample=False)
assert codes.shape[0] == 1 and 3 < codes.shape[1] <= 11, codes.shape
print("transformers", transformers.__version__, "torch", torch.__version__)
