"""Files of an object: mesh, turntable, viewer."""
