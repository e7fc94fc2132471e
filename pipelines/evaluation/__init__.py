"""Evaluation of sampled views: recognition of prompts, quality against true views, and consistency in 3D."""
