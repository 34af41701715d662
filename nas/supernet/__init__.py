"""A super-network: one set of weights, in order of importance, whose every prefix is a model.

"LLM Compression with Neural Architecture Search" (arXiv 2410.06479) and its ancestor (arXiv 2405.02267).
"""
