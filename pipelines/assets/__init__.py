"""3D files of an object: mesh, turntable and viewer."""
