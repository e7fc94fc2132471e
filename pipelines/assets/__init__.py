"""3D files of an object: mesh, turntable and viewer."""

PLY_FILE, SPLAT_FILE, MESH_FILE = "gaussians.ply", "gaussians.splat", "mesh.glb"
TURNTABLE_FILE, VIEWER_FILE = "turntable.mp4", "viewer.html"
ASSET_FILES = (PLY_FILE, SPLAT_FILE, MESH_FILE, TURNTABLE_FILE, VIEWER_FILE)
