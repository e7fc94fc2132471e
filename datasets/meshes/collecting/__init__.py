"""What tools/collect_meshes.py does: download sources, read their objects, and write them as .glb with captions."""
