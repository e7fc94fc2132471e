"""What sampled views are worth: recognition of prompts, quality against true views, consistency in 3D."""
