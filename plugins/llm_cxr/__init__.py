"""The parts of LLM-CXR: prompt, sampling of image tokens, VQ-GAN decoder.

Lee et al. 2024 (https://arxiv.org/abs/2305.11490); the facts are those of their public code,
https://github.com/hyn2028/llm-cxr at 854a233. A GPT-NeoX language model (databricks/dolly-v2-3b)
whose vocabulary is continued by the 1,024 codes of a VQ-GAN: code c is token (size of the
tokenizer) + c. An image is 16 x 16 codes, row by row, and the VQ-GAN draws them as 256 x 256
pixels.
"""
