"""3D files of an object: mesh, turntable and viewer."""

PLY_FILE, SPLAT_FILE, SPZ_FILE, GLTF_FILE = "gaussians.ply", "gaussians.splat", "gaussians.spz", "gaussians.glb"
MESH_FILE = "mesh.glb"
TURNTABLE_FILE, VIEWER_FILE = "turntable.mp4", "viewer.html"
ASSET_FILES = (PLY_FILE, SPLAT_FILE, SPZ_FILE, GLTF_FILE, MESH_FILE, TURNTABLE_FILE, VIEWER_FILE)
