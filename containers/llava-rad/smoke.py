"""Run in the environment: a step of LoRA fine-tuning of a tiny Llama, as the public code does."""

import accelerate
import open_clip
import peft
import timm
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import chexgenbench.jobs.worker

assert transformers.__version__ == "4.31.0", transformers.__version__
assert peft.__version__ == "0.4.0", peft.__version__
assert torch.__version__.startswith("2.0.1"), torch.__version__
assert accelerate and open_clip and timm and chexgenbench.jobs.worker.main
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
)
lora = LoraConfig(r=2, lora_alpha=128, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
model = get_peft_model(LlamaForCausalLM(config), lora)
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimiser = torch.optim.AdamW(trained, lr=1e-2)
tokens = torch.randint(0, 64, (2, 8))
losses = []
for _ in range(20):
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses
print(f"transformers {transformers.__version__}: loss {losses[0]:.3f} to {losses[-1]:.3f}")
